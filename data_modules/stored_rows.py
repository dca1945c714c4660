"""Rows of large files: kept in Arrow's columns, each made again when it is asked for."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from dipo_pl.data_modules.large_sequence import FEW, LargeSequence, listed_if_few
from dipo_pl.rows import Row


def stored(rows: Iterable[Row]) -> Sequence[Row]:
    """Return rows as a list if they are few, else as `StoredRows`."""
    return listed_if_few(rows, StoredRows.of)


class StoredRows(LargeSequence[Row]):
    """Sequence of rows in an Arrow table; what is iterated over is decoded a few at a time.

    Args:
        table: see `of`.
    """

    def __init__(self, table: Any) -> None:
        self.table = table

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "StoredRows":
        """Return a table of rows."""
        # Imported here because it takes a while, and most files have few rows.
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

    def item(self, index: int) -> Row:
        """Return a row."""
        return next(iter(StoredRows(self.table.slice(index, 1))))

    def part(self, places: range) -> Sequence[Row]:
        """Return some rows, of the same table if they follow each other."""
        if places.step != 1:
            return stored(map(self.item, places))
        return StoredRows(self.table.slice(places.start, len(places)))

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
