"""Turns of a conversation as data sets write them: {role, content}, or ShareGPT's {from, value}."""

from collections.abc import Mapping
from typing import Any

from dipo_pl.data_modules.columns import given_columns, is_null
from dipo_pl.errors import InputError
from dipo_pl.rows import Messages

# Who speaks in ShareGPT's turns.
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
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
    given = [each for each in value if not is_null(each)] if isinstance(value, list) else []
    if len(given) < 2:
        raise InputError(
            f"{where}: {name!r} must be a list of {{role, content}} that ends with an assistant message "
            f"(got {repr(value)[:60]})"
        )
    turns = [
        _turn(each, f"{where}: {name!r}, turn {place} of {len(given)}")
        for place, each in enumerate(given, start=1)
    ]
    role, content, rest = turns[-1]
    if role != "assistant" or not content.strip():
        raise InputError(
            f"{where}: {name!r} must end with a non-empty assistant message, which is the answer (got {role!r}, "
            f"{content[:60]!r})"
        )
    if "weight" in rest and not rest["weight"]:
        raise InputError(
            f"{where}: {name!r} ends with a message of weight {rest['weight']}, and it is what is trained"
        )
    unread = [f"{name}[].{key}" for _, _, rest in turns for key in rest]
    return tuple((role, content) for role, content, _ in turns), unread


def _turn(value: Any, where: str) -> tuple[str, str, dict[str, Any]]:
    """Return role, content and what else a turn has."""
    given = given_columns(value) if isinstance(value, Mapping) else {}
    role, content = given.get("role", given.get("from")), given.get("content", given.get("value"))
    if not isinstance(role, str):
        raise InputError(f"{where}: must be {{role, content}} (got {repr(value)[:60]})")
    if said := [key for key in SAID if given.get(key) not in (None, "", [], {})]:
        raise InputError(
            f"{where} ({role}): has {said[0]!r}, which a row cannot hold: write it into content as the model does, or leave "
            "the row out"
        )
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], Mapping):
        content = content[0].get("text") if content[0].get("type") == "text" else content
    if not isinstance(content, str):
        raise InputError(
            f"{where} ({role}): 'content' must be a text or a list of one text part; images and tool calls are not "
            f"supported (got {repr(content)[:60]})"
        )
    if "role" not in given:
        if role.lower() not in ROLES:
            raise InputError(
                f"{where}: 'from' must be {', '.join(ROLES)} (got {role!r}): write the role that the chat template knows as "
                "'role', or leave the row out"
            )
        role = ROLES[role.lower()]
    return role, content, {key: each for key, each in given.items() if key not in KEYS and key not in SAID}
