"""Turns of a conversation as data sets write them: {role, content}, or ShareGPT's {from, value}."""

from collections.abc import Mapping
from typing import Any

from dipo_pl.data_modules.columns import given_columns, is_null
from dipo_pl.errors import InputError
from dipo_pl.rows import Messages

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
# What else a turn may say: a row would be another without it.
SAID = (
    "tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "refusal", "audio", "images", "image",
)  # fmt: skip
KEYS = ("role", "content", "from", "value")


def messages_of(value: Any, name: str, where: str) -> tuple[Messages, list[str]]:
    """Return role and content of each turn, and the names of keys that are not read.

    Args:
        value: the turns.
        name: their column.
        where: place of the record, for errors.

    Raises:
        InputError: a turn holds something else than a role and a text, or the last one is not an answer.
    """
    if not isinstance(value, list) or not value:
        raise InputError(
            f"{where}: {name!r} must be a list of {{role, content}} that ends with a non-empty assistant message (got "
            f"{repr(value)[:60]})"
        )
    turns = [
        _turn(each, f"{where}: {name!r}, message {number}")
        for number, each in enumerate((each for each in value if not is_null(each)), start=1)
    ]
    last = (
        f"{where}: {name!r} must be a list of {{role, content}} that ends with a non-empty assistant message"
    )
    if len(turns) < 2:
        raise InputError(f"{last}, after the question (got {len(turns)} message{'s' * (len(turns) != 1)})")
    (role, content), rest = turns[-1][:2], turns[-1][2]
    if role != "assistant" or not content.strip():
        raise InputError(f"{last} (got {content[:40]!r} by {role!r})")
    if "weight" in rest and not rest["weight"]:
        raise InputError(
            f"{where}: {name!r} ends with a message of weight {rest['weight']}, and that is what a row trains on"
        )
    unread = [f"{name}[].{key}" for _, _, rest in turns for key in rest]
    return tuple((role, content) for role, content, _ in turns), unread


def _turn(value: Any, where: str) -> tuple[str, str, dict[str, Any]]:
    """Return role, content and what else a turn has."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be {{role, content}} (got {repr(value)[:60]})")
    given = given_columns(value)
    role, content = given.get("role", given.get("from")), given.get("content", given.get("value"))
    if not isinstance(role, str):
        raise InputError(f"{where} must have a role (got {role!r})")
    if said := [key for key in SAID if given.get(key) not in (None, "", [], {})]:
        raise InputError(
            f"{where} ({role}) has {said[0]}, which a row cannot hold: write it into content as the model does, or leave "
            "the row out"
        )
    if isinstance(content, list) and content and all(_is_text_part(each) for each in content):
        content = "".join(each["text"] for each in content)
    if not isinstance(content, str):
        raise InputError(f"{where} ({role}) must have a text as content (got {repr(content)[:60]})")
    role = role if "role" in given else ROLES.get(role.lower(), role)
    # Of fewer keys, such as names of speakers, the trained text does not depend.
    return role, content, {key: each for key, each in given.items() if key not in KEYS and key not in SAID}


def _is_text_part(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("type") == "text" and isinstance(value.get("text"), str)
