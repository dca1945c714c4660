"""Columns of records: which of them make a row, and what is said of the others, so that nothing is left out unsaid."""

import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_warn

from dipo_pl.errors import InputError

# Columns that each part of a row is made of, one or several.
Columns = Mapping[str, str | Sequence[str]]

# Columns that the parts of a row are made of without a mapping. A record has the first form whose first column is filled.
# Columns of a part after its first may be missing.
Form = Mapping[str, tuple[str, ...]]
FORMS: tuple[Form, ...] = (
    {"messages": ("messages",)},
    # The form of ShareGPT.
    {"messages": ("conversations",)},
    {"question": ("question",), "answer": ("answer",)},
    # The form of Alpaca.
    {"question": ("instruction", "input"), "answer": ("output",)},
    {"question": ("prompt",), "answer": ("completion",)},
    {"text": ("text",)},
)
# Prompt and completion may also be turns.
TURNS_IN_PARTS: Form = {"messages": ("prompt", "completion")}
NEEDED = [(tuple(names[0] for names in form.values()), form) for form in FORMS]
PARTS = (("messages",), ("question", "answer"), ("text",))
OPTIONAL = (
    "system",
    "paraphrased_answer",
    "perturbed_answer",
    "alternate_answer",
    "paraphrased_question",
    "entity",
)
# Words in the names of others' columns, the most telling first.
CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
ANSWERS = (
    "answer", "answers", "completion", "completions", "response", "responses", "output", "outputs", "target", "targets",
    "labels", "label", "reply", "solution", "chosen", "assistant", "gold", "truth", "reference", "summary",
)  # fmt: skip
QUESTIONS = (
    "question",
    "questions",
    "prompt",
    "instruction",
    "query",
    "input",
    "inputs",
    "problem",
    "user",
    "human",
)
TEXTS = ("text", "texts", "content", "document", "article", "passage", "body", "story")
# Words in the names of columns without which a question may not be understood.
CONTEXTS = (
    "context", "contexts", "input", "inputs", "instruction", "instructions", "passage", "document", "documents",
    "article", "history", "background", "premise", "choices", "options", "prompt",
)  # fmt: skip
BOOKKEEPING = frozenset((
    "id", "ids", "uid", "index", "idx", "url", "source", "type", "hash", "length", "len", "count", "num", "tokens", "start",
    "end", "score",
))  # fmt: skip


def given_columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a record that have a value: null is as good as no column, and so is the NaN of pandas."""
    return {str(name): value for name, value in record.items() if not is_null(value)}


def is_null(value: Any) -> bool:
    """Return whether a value stands for none."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def form_of(record: Mapping[str, Any]) -> Form | None:
    """Return the form of a record: the first whose first column is filled, or else is there; None if it has none of any."""
    for names in ({name for name, value in record.items() if _holds_text(value)}, record.keys()):
        found = [form for needed, form in NEEDED if needed[0] in names]
        found += [form for needed, form in NEEDED if not names.isdisjoint(needed)]
        if found:
            turns = all(_is_turns(record.get(name)) for name in TURNS_IN_PARTS["messages"])
            return TURNS_IN_PARTS if turns and "prompt" in found[0].get("question", ()) else found[0]
    return None


def missing_of(record: Mapping[str, Any], form: Form) -> str | None:
    """Return the first column that a form needs and that a record does not have, or only as a blank text."""
    blank = {name for name, value in record.items() if isinstance(value, str) and not value.strip()}
    return next((name for name, *_ in form.values() if name not in record or name in blank), None)


def refuse_many_rows(record: Mapping[str, Any], where: str) -> None:
    """Refuse an object that holds all rows: a list of them, or each column with all its values, as pandas writes them.

    Raises:
        InputError: it is one.
    """
    values = [*record.values()]
    if not all(map(_is_nested, values)):
        return
    if len(values) == 1 and _is_turns(values[0]):
        keys = {key for each in values[0] if isinstance(each, Mapping) for key in each}
        if any({*needed} <= keys for needed, form in NEEDED if "text" not in form):
            raise InputError(
                f"{where}: holds a list of rows, {min(record)!r}: write the list alone, or one object on each line"
            )
    together = [[*each.values()] if isinstance(each, dict) else each for each in values]
    if len(values) > 1 and len({*map(len, values)}) == 1 and all(map(_is_text, together)):
        raise InputError(
            f"{where}: holds columns with all their values: write one object for each row (pandas: orient='records', "
            "lines=True)"
        )


def check_columns(columns: Columns) -> None:
    """Refuse a mapping that does not make a row.

    Raises:
        InputError: it names no part of a row, parts of two forms, or half of one.
    """
    known = [*(name for part in PARTS for name in part), *OPTIONAL]
    if unknown := [name for name in columns if name not in known]:
        raise InputError(
            f"data.columns must say what {', '.join(known)} are made of, such as {{question: query, answer: response}} "
            f"(got {unknown[0]!r})"
        )
    forms = [part for part in PARTS if any(name in columns for name in part)]
    if len(forms) != 1 or any(name not in columns for name in forms[0]):
        raise InputError(
            "data.columns must map one form of row: messages, or question and answer, or text "
            f"(got {', '.join(columns) or 'none'})"
        )
    if empty := [name for name, given in columns.items() if not given]:
        raise InputError(
            f"data.columns.{empty[0]} must name a column, or a list of them (got {columns[empty[0]]!r})"
        )


def refuse_left_out(record: Mapping[str, Any], form: Form, where: str) -> None:
    """Refuse a record whose other columns belong to its question or answer.

    Args:
        record: the columns that have a value.
        form: what the row is made of.
        where: place of the record, for errors.

    Raises:
        InputError: there are such columns; the message has the mapping that reads them, and the one that does not.
    """
    if "messages" in form or not all(isinstance(record.get(name), str) for name, *_ in form.values()):
        # A value that is no text is refused as such, with the row.
        return
    read = {part: [name for name in names if name in record] for part, names in form.items()}
    used = [name for names in read.values() for name in names]
    others = {name: value for name, value in record.items() if name not in (*used, *OPTIONAL)}
    if "text" in form:
        answer, question = _like(others, ANSWERS), _like(others, QUESTIONS)
        if answer is None and question is None:
            return
        alone = _as_option(read)
        named = " and ".join(repr(each) for each in (question, answer) if each)
        both = (
            ""
            if answer is None
            else f"{_as_option({'question': [question or 'text'], 'answer': [answer]})}, or "
        )
        raise InputError(
            f"{where}: {named} would be left out beside 'text': give {both}{alone} to use 'text' alone"
        )
    if (context := _like(others, CONTEXTS, _holds_text)) is not None:
        both = _as_option({"question": [context, *read["question"]], "answer": read["answer"]})
        advice = f"give {both} to put it before the question"
        if not _is_text(record[context]):
            advice = "write it into the question as text"
        raise InputError(
            f"{where}: {context!r} would be left out, and the question may need it: {advice}, or {_as_option(read)} to "
            "leave it out"
        )


def conversion(record: Mapping[str, Any]) -> str:
    """Return how a record of another form can be read, as the end of a sentence; empty if that is not known."""
    conversation = _like(record, CONVERSATIONS, _is_turns)
    answer = _like(record, ANSWERS) or _like(record, ANSWERS, _is_turns)
    others = {name: value for name, value in record.items() if name != answer}
    if conversation is not None:
        mapping = {"messages": [conversation]}
    elif answer is not None and isinstance(record[answer], list):
        question = _like(others, QUESTIONS, _is_turns)
        mapping = {"messages": [answer] if question is None else [question, answer]}
    elif answer is not None and (question := _like(others, (*QUESTIONS, *TEXTS))) is not None:
        more = _like({name: value for name, value in others.items() if name != question}, CONTEXTS)
        # An input follows its instruction; a context comes before the question.
        asked = (
            [question] if more is None else [question, more] if "input" in more.lower() else [more, question]
        )
        mapping = {"question": asked, "answer": [answer]}
    elif (part := _like(record, ANSWERS, _is_nested)) is not None:
        return f": write the text that {part!r} holds into a column of its own, such as answer"
    elif (text := _like(record, TEXTS)) is not None:
        mapping = {"text": [text]}
    else:
        return ""
    return f": give {_as_option(mapping)}"


def _as_option(mapping: Mapping[str, Sequence[str]]) -> str:
    short = {part: names[0] if len(names) == 1 else list(names) for part, names in mapping.items()}
    text = yaml.safe_dump(short, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return f"--data.columns {shlex.quote(text.strip())}"


def _holds_text(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else _is_nested(value)


def _is_text(value: Any) -> bool:
    """Return whether a value is a text, or a list of some, which are joined."""
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(each, str) for each in texts) and any(map(str.strip, texts))


def _is_nested(value: Any) -> bool:
    return isinstance(value, list | dict) and bool(value)


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _like(
    record: Mapping[str, Any], words: Iterable[str], accepts: Callable[[Any], bool] = _is_text
) -> str | None:
    """Return the column whose name has the first of some words, of those whose value is accepted, by default texts."""
    parts = {
        name: re.split(r"[\W_]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
        for name, value in record.items()
        if accepts(value)
    }
    for word in words:
        for name, each in parts.items():
            if word in each and BOOKKEEPING.isdisjoint(each):
                return name
    return None


def note_reading(source: str, unread: Sequence[str], used: Iterable[str], with_context: int) -> None:
    """Say once what of a file is not read or not trained.

    Args:
        source: the file.
        unread: columns that are not read.
        used: columns that are.
        with_context: rows whose conversation has other answers before the last one.
    """
    if unread:
        columns = (
            f"column{'s' * (len(unread) > 1)} {', '.join(unread[:8])}{', ...' if len(unread) > 8 else ''}"
        )
        verb = "are" if len(unread) > 1 else "is"
        rank_zero_warn(f"{source}: {columns} {verb} not read (used: {', '.join(used)})")
    if with_context:
        rank_zero_warn(
            f"{source}: {with_context} conversation{'s' * (with_context > 1)} with several answers: the last one is trained "
            "and measured, and those before it are its context"
        )
