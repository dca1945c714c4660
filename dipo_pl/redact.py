"""Keeps what gives access out of files that a run leaves behind and out of its messages."""

import re
from collections.abc import Sequence

HIDDEN = "REDACTED"
# https://user:password@host, https://token@host
_IN_URL = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")
# As the hub writes its tokens.
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b")
_NAME = r"(?i:(?:\b|[\w.-]*[_.-])(?:token|api_?key|password|secret))"
_SETTING = re.compile(rf"(?P<name>{_NAME}['\"]?\s*[:=]\s*['\"]?)(?!null\b|None\b)[^\s'\",}}&]+")
_OPTION = re.compile(rf"-{{1,2}}{_NAME}")


def redact(text: str) -> str:
    """The text with REDACTED for credentials in URLs, the hub's tokens, and values of keys such as token or api_key."""
    text = _HUB_TOKEN.sub(HIDDEN, _IN_URL.sub(HIDDEN, text))
    return _SETTING.sub(rf"\g<name>{HIDDEN}", text)


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """The words of a command line, likewise; of an option such as --x.token the word that follows is hidden."""
    before = ("", *arguments)
    return [
        HIDDEN if _OPTION.fullmatch(option) else redact(word)
        for option, word in zip(before, arguments, strict=False)
    ]
