"""Rows of large files: kept in Arrow's columns, each made again when it is asked for."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, overload

from dipo_pl.rows import Row

# So many rows are a list. More are encoded at a time.
FEW = 4096


def stored(rows: Iterable[Row]) -> Sequence[Row]:
    """Return rows as a list if they are few, else as `StoredRows`."""
    rows = iter(rows)
    first = list(islice(rows, FEW))
    following = next(rows, None)
    return first if following is None else StoredRows.of(chain(first, (following,), rows))


class StoredRows(Sequence[Row]):
    """Sequence of rows in an Arrow table; what is iterated over is decoded a few at a time.

    Args:
        table: see `of`.
    """

    def __init__(self, table: Any) -> None:
        self.table = table

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "StoredRows":
        """Return a table of rows."""
        # Late: importing it takes a while, and most files have few rows.
        import pyarrow

        text, texts = pyarrow.string(), pyarrow.list_(pyarrow.string())
        # Answers and contents may be whole documents, together more than 2 GiB.
        large = pyarrow.large_string()
        schema = pyarrow.schema({
            "roles": texts, "contents": pyarrow.list_(large), "answer": large, "paraphrased_answer": text,
            "wrong_answers": texts, "alternate_answers": texts, "paraphrased_question": text, "entity": text, "where": text,
        })  # fmt: skip
        # Arrow's own pool holds twice what the batches need.
        pool = pyarrow.system_memory_pool()
        rows = iter(rows)
        batches = []
        while some := list(islice(rows, FEW)):
            columns = [
                [[role for role, _ in row.messages] for row in some],
                [[content for _, content in row.messages] for row in some],
                *([getattr(row, name) for row in some] for name in schema.names[2:]),
            ]
            arrays = [
                pyarrow.array(column, each.type, memory_pool=pool)
                for column, each in zip(columns, schema, strict=True)
            ]
            batches.append(pyarrow.record_batch(arrays, schema=schema))
        return cls(pyarrow.Table.from_batches(batches, schema))

    def __len__(self) -> int:
        """Return the number of rows."""
        count: int = self.table.num_rows
        return count

    @overload
    def __getitem__(self, place: int) -> Row: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Row]: ...

    def __getitem__(self, place: int | slice) -> Row | Sequence[Row]:
        """Return a row, or some rows of the same table."""
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step != 1:
                return stored(self[each] for each in range(start, stop, step))
            return StoredRows(self.table.slice(start, max(stop - start, 0)))
        index = range(len(self))[place]
        return next(iter(StoredRows(self.table.slice(index, 1))))

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows."""
        for batch in self.table.to_batches(FEW):
            for roles, contents, answer, paraphrased, wrong, alternate, question, entity, where in zip(
                *(column.to_pylist() for column in batch.columns), strict=True
            ):
                yield Row(
                    tuple(zip(roles, contents, strict=True)), answer, paraphrased, tuple(wrong), tuple(alternate), question,
                    entity, where,
                )  # fmt: skip
