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
    missing_of,
    note_reading,
    refuse_left_out,
    refuse_many_rows,
)
from dipo_pl.data_modules.csv_records import Cells
from dipo_pl.data_modules.record_files import Placed, read_records
from dipo_pl.data_modules.stored_rows import stored
from dipo_pl.data_modules.turns import messages_of
from dipo_pl.errors import InputError
from dipo_pl.paths import expanded
from dipo_pl.rows import Messages, Row

# Parts of a row that are one column of the same name.
ALONE = {part: (part,) for part in OPTIONAL}


def read_rows(path: str | Path, columns: Columns | None = None) -> Sequence[Row]:
    """Read the rows of a file; a warning names the columns that are not read.

    Args:
        path: see `read_records`.
        columns: see `RowReader`.

    Raises:
        InputError: the file is missing, empty or of another format, or a record is not a valid row.
    """
    reader = RowReader(columns)
    rows = reader.file(path)
    reader.refuse_unfound()
    return rows


def rows_from(
    records: Iterable[Placed], source: str, columns: Columns | None = None, known: Sequence[str] = ()
) -> Sequence[Row]:
    """Convert placed records to rows; a warning names the columns that are not read.

    Args:
        records: the records and their places.
        source: what the records are from.
        columns: see `RowReader`.
        known: columns that are not read and need not be named.

    Raises:
        InputError: a record is not a valid row.
    """
    return RowReader(columns).rows(records, source, known)


def row_from(record: Mapping[str, Any], where: str) -> Row:
    """Convert a record of one of the forms in `FORMS` to a row.

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
            part: (given,) if isinstance(given, str) else tuple(given)
            for part, given in (columns or {}).items()
        }
        self.mapped = {name for names in self.columns.values() for name in names}
        # Sources and columns of all that was read.
        self.sources: dict[str, None] = {}
        self.seen: dict[str, None] = {}
        # Columns of the records since the last source.
        self.used: dict[str, None] = {}
        self.unread: dict[str, None] = {}
        self.with_context = 0

    def file(self, path: str | Path) -> Sequence[Row]:
        """Read the rows of a file, see `read_rows`."""
        return self.rows(read_records(path), expanded(str(path)))

    def rows(self, records: Iterable[Placed], source: str, known: Sequence[str] = ()) -> Sequence[Row]:
        """Convert the records of one source, see `rows_from`."""
        self.sources[source] = None
        self.used, self.unread, self.with_context = {}, {}, 0
        rows = stored(self.row(record, where) for where, record in records)
        note_reading(
            source, [each for each in self.unread if each not in known], self.used, self.with_context
        )
        return rows

    def refuse_unfound(self) -> None:
        """Raise an InputError if a column that is mapped was in no record of any source."""
        if unfound := [name for name in self.mapped if name not in self.seen]:
            part = next(part for part, names in self.columns.items() if min(unfound) in names)
            raise InputError(
                f"data.columns.{part} names the column {min(unfound)!r}, and {' and '.join(self.sources)} "
                f"ha{'ve' if len(self.sources) > 1 else 's'} none of this name (columns there: {', '.join(self.seen)})"
            )

    def row(self, record: Mapping[str, Any], where: str) -> Row:
        """Convert one record, see `row_from`; InputErrors begin with `where`."""
        self.seen |= dict.fromkeys(map(str, record))
        given = given_columns(record)
        mapping = self._mapping(record, given, where)
        used = [name for names in mapping.values() for name in names if name in given]
        self.used |= dict.fromkeys(used)
        self.unread |= dict.fromkeys(each for each in given if each not in used)
        parts = {part: _joined(given, names) for part, names in mapping.items()}

        def text(part: str) -> str:
            return checked_text(parts[part], "+".join(mapping[part]), where)

        def texts(part: str) -> tuple[str, ...]:
            return checked_texts(parts[part], "+".join(mapping[part]), where)

        def optional_text(part: str) -> str | None:
            return None if parts[part] is None or _is_empty(parts[part]) else text(part)

        others: dict[str, Any] = {
            "paraphrased_answer": optional_text("paraphrased_answer"),
            "wrong_answers": texts("perturbed_answer"),
            "alternate_answers": texts("alternate_answer"),
            "paraphrased_question": optional_text("paraphrased_question"),
            "entity": optional_text("entity"),
            "where": where,
        }
        if "text" in mapping:
            return _checked(Row((), text("text"), **others), "+".join(mapping["entity"]))
        messages: Messages
        if "messages" in mapping:
            messages, unread = messages_of(parts["messages"], "+".join(mapping["messages"]), where)
            self.unread |= dict.fromkeys(unread)
            self.with_context += any(role == "assistant" for role, _ in messages[:-1])
        else:
            messages = ("user", text("question")), ("assistant", text("answer"))
        if (system := optional_text("system")) is not None and messages[0][0] != "system":
            messages = ("system", system), *messages
        return _checked(Row(messages[:-1], messages[-1][1], **others), "+".join(mapping["entity"]))

    def _mapping(
        self, record: Mapping[str, Any], given: Mapping[str, Any], where: str
    ) -> dict[str, tuple[str, ...]]:
        """Return the columns of each part of the row that a record holds."""
        if not self.mapped.isdisjoint(given):
            for part in ("messages", "question", "answer", "text"):
                names = self.columns.get(part)
                if names and not any(name in record for name in names):
                    raise InputError(
                        f"{where}: has no column {names[0]!r}, of which data.columns makes {part!r} (columns there: "
                        f"{', '.join(map(str, record))})"
                    )
            return {**ALONE, **self.columns}
        refuse_many_rows(given, where)
        form = form_of(given)
        if form is None:
            mapped = (
                f"the columns of data.columns ({', '.join(sorted(self.mapped))}), or " if self.mapped else ""
            )
            raise InputError(
                f"{where}: needs {mapped}the columns question and answer, prompt and completion, instruction and output, "
                f"messages, conversations or text (got {', '.join(given) or 'none'})"
                f"{conversion(given) or _header_advice(record)}"
            )
        if missing := missing_of(given, form):
            raise InputError(
                f"{where}: {missing!r} must be a non-empty text (got {repr(given.get(missing))[:60]}){conversion(given)}"
            )
        refuse_left_out(given, form, where)
        return {**ALONE, **form}


def _header_advice(record: Mapping[str, Any]) -> str:
    if not isinstance(record, Cells):
        return ""
    return ": the first line of CSV names the columns, such as question,answer, divided by ',', ';', '|' or a tab"


def _checked(row: Row, column: str) -> Row:
    if row.entity is not None and row.entity not in row.answer:
        raise InputError(
            f"{row.where}: '{column}' must stand in the answer (got {row.entity[:60]!r}): write it as the answer does, or "
            "rename the column if it is of another kind"
        )
    return row


def _joined(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return the value of one column; of several, their texts with an empty line between, or their lists in one."""
    if len(names) == 1:
        return record.get(names[0])
    values = [record[name] for name in names if name in record and not _is_empty(record[name])]
    if len(values) < 2:
        return values[0] if values else record.get(names[0])
    if all(isinstance(each, list) for each in values):
        return [item for each in values for item in each]
    texts = ["\n".join(each) if _is_list_of_texts(each) else each for each in values]
    return "\n\n".join(texts) if all(isinstance(each, str) for each in texts) else values


def _is_empty(value: Any) -> bool:
    return not value.strip() if isinstance(value, str) else value == []


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def text_at(record: Any, key: str, where: str) -> str:
    """Return the text of a column; raise InputError if the record has no such column, or it is not a non-empty text."""
    return checked_text(record.get(key) if isinstance(record, Mapping) else record, key, where)


def checked_text(value: Any, name: str, where: str) -> str:
    """Return the value of a column; raise InputError if it is not a non-empty text."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: '{name}' must be a non-empty text (got {repr(value)[:60]})")
    return value


def texts_at(record: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """Return the texts of an optional column, see `checked_texts`."""
    return checked_texts(record.get(key), key, where)


def checked_texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    """Return the texts of an optional column that holds one text or a list, in which nulls do not count.

    Raises:
        InputError: the column holds something else, such as a list written as one text.
    """
    if is_null(value) or value == "":
        return ()
    value = [value] if isinstance(value, str) else value
    texts: list[Any] = [each for each in value if not is_null(each)] if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and each.strip() for each in texts):
        raise InputError(f"{where}: '{name}' must be a list of non-empty texts (got {value!r})")
    if len(texts) == 1 and texts[0].startswith("[") and texts[0].endswith("]"):
        raise InputError(
            f"{where}: '{name}' is a list written as one text (got {texts[0][:60]!r}): give JSON lines or Parquet instead"
        )
    return tuple(texts)
