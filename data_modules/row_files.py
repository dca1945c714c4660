"""Rows read from files and records; errors name the file and the line."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dipo_pl.errors import InputError
from dipo_pl.rows import Messages, Row
from dipo_pl.storage.text import read_text


def row_from(record: Mapping[str, Any], where: str) -> Row:
    """Convert {question, answer}, {text} or {messages} to a row.

    The columns paraphrased_answer (a text), perturbed_answer and alternate_answer (a text or a list) are optional.

    Raises:
        InputError: a column is missing, empty or of the wrong type.
    """
    is_paraphrased = record.get("paraphrased_answer") is not None
    others: dict[str, Any] = {
        "paraphrased_answer": text_at(record, "paraphrased_answer", where) if is_paraphrased else None,
        "wrong_answers": texts_at(record, "perturbed_answer", where),
        "alternate_answers": texts_at(record, "alternate_answer", where),
        "where": where,
    }
    if "messages" in record:
        messages = _messages(record["messages"], where)
        return Row(messages[:-1], messages[-1][1], **others)
    if "question" in record or "answer" in record:
        return Row(
            (("user", text_at(record, "question", where)),), text_at(record, "answer", where), **others
        )
    if "text" in record:
        return Row((), text_at(record, "text", where), **others)
    raise InputError(
        f"{where}: needs the columns 'question' and 'answer', or 'text', or 'messages' (got {', '.join(record) or 'none'})"
    )


def text_at(record: Any, key: str, where: str) -> str:
    """Return the text of a column; raise InputError if the record has no such column, or it is not a non-empty text."""
    value = record.get(key) if isinstance(record, Mapping) else record
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: '{key}' must be a non-empty text (got {repr(value)[:60]})")
    return value


def texts_at(record: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """Return the texts of an optional column that holds one text or a list.

    Raises:
        InputError: the column holds something else.
    """
    value = record.get(key) or []
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(each, str) and each.strip() for each in value):
        raise InputError(f"{where}: '{key}' must be a list of non-empty texts (got {value!r})")
    return tuple(value)


def _messages(value: Any, where: str) -> Messages:
    if not isinstance(value, list) or len(value) < 2:
        raise InputError(
            f"{where}: 'messages' must be a list of {{role, content}} that ends with an assistant message "
            f"(got {repr(value)[:60]})"
        )
    turns = tuple(
        _turn(each, f"{where}: 'messages', turn {place} of {len(value)}")
        for place, each in enumerate(value, start=1)
    )
    role, content = turns[-1]
    if role != "assistant" or not content.strip():
        raise InputError(
            f"{where}: 'messages' must end with a non-empty assistant message, which is the answer (got {role!r}, "
            f"{content[:60]!r})"
        )
    return turns


def _turn(value: Any, where: str) -> tuple[str, str]:
    """Return role and content of a message; a content may be a list of one text part."""
    role, content = (value.get(key) if isinstance(value, dict) else None for key in ("role", "content"))
    if not isinstance(role, str):
        raise InputError(f"{where}: must be {{role, content}} (got {repr(value)[:60]})")
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        content = content[0].get("text") if content[0].get("type") == "text" else content
    if not isinstance(content, str):
        raise InputError(
            f"{where} ({role}): 'content' must be a text or a list of one text part; images and tool calls are not "
            f"supported (got {repr(content)[:60]})"
        )
    return role, content


def read_json_lines(path: str | Path) -> list[Row]:
    """Read the rows of a JSON-lines file.

    Raises:
        InputError: the file is missing, empty or not UTF-8, or a line is not a valid row.
    """
    return [row_from(record, where) for where, record in json_records(path)]


def json_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the JSON object of each line.

    Raises:
        InputError: the file is missing, empty or not UTF-8, or a line is not a JSON object.
    """
    for where, line in read_lines(path, "a JSON-lines file"):
        record = parse_json(line, where)
        if not isinstance(record, dict):
            raise InputError(f"{where}: must be a JSON object (got {type(record).__name__})")
        yield where, record


def parse_json(text: str, where: str) -> Any:
    """Parse JSON whose texts can all be encoded as UTF-8.

    Raises:
        InputError: the text is not JSON, is nested too deeply, or has an unpaired surrogate.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{where}: not valid JSON ({error.msg} at {place})") from None
    except RecursionError:
        raise InputError(f"{where}: JSON is nested too deeply") from None
    except UnicodeEncodeError as error:
        surrogate = error.object[error.start]
        raise InputError(
            f"{where}: contains {surrogate!r}, an unpaired surrogate, which is not text"
        ) from None
    except ValueError as error:
        raise InputError(f"{where}: JSON cannot be used ({error})") from None
    return value


def read_lines(path: str | Path, kind: str) -> list[tuple[str, str]]:
    """Read the lines of a file that are not blank, each with its place; `kind` says in an error what it should be.

    Raises:
        InputError: the file is missing, empty or not UTF-8.
    """
    try:
        lines = read_text(path).split("\n")
    except FileNotFoundError:
        raise InputError(f"no file {path}: give the path of {kind}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from None
    found = [(f"{path}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise InputError(f"{path} is empty: it needs at least one row")
    return found


def load_split(path: str, configuration: str, split: str, name: str) -> Iterable[Mapping[str, Any]]:
    """Load the records of one split of a data set on the hub, or of a copy of its repository; `name` is for errors.

    Raises:
        InputError: the split cannot be loaded.
    """
    if Path(path).is_file():
        raise InputError(f"data.path {path} is a file: give its folder, or a data set of the hub")
    # Imported here because it takes a second, which only data from the hub needs.
    import datasets

    try:
        records: Iterable[Mapping[str, Any]] = datasets.load_dataset(path, configuration, split=split)
    except Exception as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"cannot read {name}: data.path {path!r} is neither a local folder nor a data set that the hub returns "
            f"({cause[:200]})"
        ) from error
    return records
