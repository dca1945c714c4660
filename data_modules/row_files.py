"""Rows read from files and records; errors name the file and the line."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dipo_pl.data_modules.columns import (
    OPTIONAL,
    Columns,
    conversion,
    form_of,
    given_columns,
    is_null,
    note_unread,
    refuse_left_out,
)
from dipo_pl.data_modules.record_files import Placed, read_records
from dipo_pl.data_modules.turns import messages_of
from dipo_pl.errors import InputError
from dipo_pl.paths import expanded
from dipo_pl.rows import Messages, Row


def read_rows(path: str | Path, columns: Columns | None = None) -> list[Row]:
    """Read the rows of a file; a warning names the columns that are not read.

    Args:
        path: see `read_records`.
        columns: see `RowReader`.

    Raises:
        InputError: the file is missing, empty or of another format, or a record is not a valid row.
    """
    return rows_from(read_records(path), expanded(str(path)), columns)


def rows_from(
    records: Iterable[Placed], source: str, columns: Columns | None = None, known: Sequence[str] = ()
) -> list[Row]:
    """Convert placed records to rows; a warning names the columns that are not read.

    Args:
        records: the records and their places.
        source: what the records are from.
        columns: see `RowReader`.
        known: columns that are not read and need not be named.

    Raises:
        InputError: a record is not a valid row.
    """
    reader = RowReader(columns)
    rows = [reader.row(record, where) for where, record in records]
    note_unread(source, (each for each in reader.unread if each not in known), reader.used)
    return rows


def row_from(record: Mapping[str, Any], where: str) -> Row:
    """Convert {question, answer}, {text} or {messages} to a row.

    The columns system, paraphrased_answer, paraphrased_question, entity (texts), perturbed_answer and alternate_answer (a
    text or a list) are optional.

    Raises:
        InputError: a column is missing, empty or of the wrong type, or one that belongs to the row would be left out.
    """
    return RowReader().row(record, where)


class RowReader:
    """Reader of records, which remembers the columns that it has used and those that it has not.

    Args:
        columns: for each part of a row, the columns that it is made of: several texts are joined by an empty line, several
            lists of messages one after another. Then no other column has to be read. A record that has none of these
            columns is read as without.
    """

    def __init__(self, columns: Columns | None = None) -> None:
        self.columns = {
            part: [given] if isinstance(given, str) else [*given] for part, given in (columns or {}).items()
        }
        self.used: list[str] = []
        self.unread: list[str] = []

    def row(self, record: Mapping[str, Any], where: str) -> Row:
        """Convert one record, see `row_from`; InputErrors begin with `where`."""
        given = given_columns(record)
        mapping = self._mapping(given, where)
        used = [name for names in mapping.values() for name in names if name in given]
        self.used += [each for each in used if each not in self.used]
        self.unread += [each for each in given if each not in used and each not in self.unread]
        parts = {part: _joined(given, names) for part, names in mapping.items()}
        names = {part: "+".join(names) for part, names in mapping.items()}

        def text(part: str) -> str:
            return text_at({names[part]: parts[part]}, names[part], where)

        def texts(part: str) -> tuple[str, ...]:
            return texts_at({names[part]: parts[part]}, names[part], where)

        def optional_text(part: str) -> str | None:
            return None if parts[part] is None else text(part)

        others: dict[str, Any] = {
            "paraphrased_answer": optional_text("paraphrased_answer"),
            "wrong_answers": texts("perturbed_answer"),
            "alternate_answers": texts("alternate_answer"),
            "paraphrased_question": optional_text("paraphrased_question"),
            "entity": optional_text("entity"),
            "where": where,
        }
        if "text" in mapping:
            return _checked(Row((), text("text"), **others), names["entity"])
        messages: Messages
        if "messages" in mapping:
            messages, unread = messages_of(parts["messages"], names["messages"], where)
            self.unread += [each for each in unread if each not in self.unread]
        else:
            messages = ("user", text("question")), ("assistant", text("answer"))
        if parts["system"] not in (None, "") and messages[0][0] != "system":
            messages = ("system", text("system")), *messages
        return _checked(Row(messages[:-1], messages[-1][1], **others), names["entity"])

    def _mapping(self, given: Mapping[str, Any], where: str) -> dict[str, list[str]]:
        """Return the columns of each part of the row that a record holds."""
        optional = {part: [part] for part in OPTIONAL}
        if any(name in given for names in self.columns.values() for name in names):
            return optional | self.columns
        form = form_of(given)
        if form is None:
            raise InputError(
                f"{where}: needs the columns 'question' and 'answer', or 'text', or 'messages' (got "
                f"{', '.join(given) or 'none'}){conversion(given)}"
            )
        if missing := [part for part in form if part not in given]:
            raise InputError(
                f"{where}: {missing[0]!r} must be a non-empty text (got None){conversion(given)}"
            )
        refuse_left_out(given, form, where)
        return optional | {part: [part] for part in form}


def _checked(row: Row, column: str) -> Row:
    if row.entity is not None and row.entity not in row.answer:
        raise InputError(
            f"{row.where}: '{column}' must stand in the answer (got {row.entity[:60]!r}): write it as the answer does, or "
            "rename the column if it is of another kind"
        )
    return row


def _joined(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return the value of one column; of several, their texts with an empty line between, or their lists in one."""
    values = [record[name] for name in names if record.get(name) not in (None, "", [])]
    if len(values) < 2:
        return values[0] if values else record.get(names[0])
    if all(isinstance(each, list) for each in values):
        return [item for each in values for item in each]
    texts = ["\n".join(each) if _is_list_of_texts(each) else each for each in values]
    return "\n\n".join(texts) if all(isinstance(each, str) for each in texts) else values


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def text_at(record: Any, key: str, where: str) -> str:
    """Return the text of a column; raise InputError if the record has no such column, or it is not a non-empty text."""
    value = record.get(key) if isinstance(record, Mapping) else record
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: '{key}' must be a non-empty text (got {repr(value)[:60]})")
    return value


def texts_at(record: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """Return the texts of an optional column that holds one text or a list, in which nulls do not count.

    Raises:
        InputError: the column holds something else, such as a list written as one text.
    """
    value = record.get(key)
    value = [] if is_null(value) or value == "" else [value] if isinstance(value, str) else value
    texts: list[Any] = [each for each in value if not is_null(each)] if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and each.strip() for each in texts):
        raise InputError(f"{where}: '{key}' must be a list of non-empty texts (got {value!r})")
    if len(texts) == 1 and texts[0].startswith("[") and texts[0].endswith("]"):
        raise InputError(
            f"{where}: '{key}' is a list written as one text (got {texts[0][:60]!r}): give JSON lines or Parquet instead"
        )
    return tuple(texts)
