"""Redaction of credentials in messages and in the files of a run."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

HIDDEN = "REDACTED"
# https://user:password@host, https://token@host
_IN_URL = re.compile(r"(?<=://)[^\s/'\"]+(?=@)")
# Tokens of the Hugging Face hub.
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b")
# Tokens of a tokenizer are no secrets.
_NAME = (
    r"(?:(?<![\w-])|(?<=[_.-]))(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)"
    r"(?i:token|api[_-]?keys?|access[_-]?keys?|private[_-]?keys?|passw(?:or)?d|passphrase|secrets?|credentials?)"
)
_CAMEL = r"[a-z](?:Token|Key|Password|Secret)"
_SECRET = re.compile(rf"(?:.*(?:{_NAME}|{_CAMEL}))")
_SETTING = re.compile(
    rf"(?P<name>{_NAME}['\"]?\s*[:=]\s*)(?!null\b|None\b)(?:(?P<quote>['\"])(?:\\.|(?!(?P=quote)).)*(?P=quote)|[^\s'\",}}&]+)"
)


def redact(text: str) -> str:
    """Return a message with REDACTED for credentials in URLs, hub tokens and values of keys such as token or api_key."""
    text = _HUB_TOKEN.sub(HIDDEN, _IN_URL.sub(HIDDEN, text))
    return _SETTING.sub(
        lambda found: f"{found['name']}{found['quote'] or ''}{HIDDEN}{found['quote'] or ''}", text
    )


def redact_values(settings: Any, name: str = "") -> Any:
    """Return settings with REDACTED for all values of keys such as token or api_key, and `redact` applied to others."""
    if settings is not None and _is_secret(name):
        return HIDDEN
    if isinstance(settings, Mapping):
        return {key: redact_values(value, str(key)) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [redact_values(value) for value in settings]
    return redact(settings) if isinstance(settings, str) else settings


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command line, redacted; of an option such as --x.token, all that follows is."""
    hidden = []
    for before, word in zip(("", *arguments), arguments, strict=False):
        option, given, value = word.partition("=") if word.startswith("-") else ("", "", "")
        if given:
            hidden.append(f"{option}={HIDDEN if _is_secret(option) else _word(value)}")
        else:
            after_secret = before.startswith("-") and "=" not in before and _is_secret(before)
            hidden.append(HIDDEN if after_secret else _word(word))
    return hidden


def _is_secret(name: str) -> bool:
    return _SECRET.fullmatch(name.lstrip("-").rstrip("+")) is not None


def _word(word: str) -> str:
    """Redact an argument, which may be a YAML or JSON mapping or list."""
    if word[:1] in ("{", "["):
        try:
            settings = yaml.safe_load(word)
        except yaml.YAMLError:
            return redact(word)
        kept = redact_values(settings)
        return word if kept == settings else json.dumps(kept)
    return redact(word)
