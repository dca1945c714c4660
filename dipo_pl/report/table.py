"""The table of a report: a row a model, a column a figure, the best marked."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dipo_pl.report.columns import Better, Column, columns_of
from dipo_pl.report.runs import Kind, Run


@dataclass(frozen=True)
class Row:
    """A model, with the figures that were measured of it."""

    name: str
    kind: Kind
    values: dict[str, float]
    run: Run
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows in the order of the report.

    Attributes:
        best: the (row, column) that are best of those that compete.
        one_task: whether all that compete were to forget the same; none is best otherwise.
    """

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    best: frozenset[tuple[int, str]] = field(default_factory=frozenset)
    one_task: bool = True

    @property
    def short(self) -> "Table":
        """With the headline figures alone."""
        return replace(self, columns=tuple(each for each in self.columns if each.headline))

    def text(self, row: int, column: Column) -> str:
        return column.text(self.rows[row].values.get(column.key))

    def is_best(self, row: int, column: Column) -> bool:
        return (row, column.key) in self.best

    @property
    def marks(self) -> str:
        """What the marks mean."""
        if not self.one_task:
            return "No figure is marked: the models were to forget different things."
        if not self.best:
            return "No figure is marked: there are no two models to choose between."
        marked = "Marked is the best of the models that compete, not of those that are there to compare with"
        if all(each.better is not Better.NEAR_RETAIN_ONLY for each in self.columns):
            return f"{marked}."
        if any(row.kind is Kind.RETAIN_ONLY for row in self.rows):
            return f"{marked}; on the forget set, the nearest to the retain-only model."
        return f"{marked}; some figures of the forget set should come near a retain-only model's, and none is here."


def make_table(rows: Sequence[Row], one_task: bool = True) -> Table:
    """Marks the best: in each column, all those that read like the best one."""
    columns = columns_of(key for row in rows for key in row.values)
    if not one_task:
        return Table(tuple(rows), tuple(columns), one_task=False)
    retain_only = next((row.values for row in rows if row.kind is Kind.RETAIN_ONLY), {})
    best: set[tuple[int, str]] = set()
    for column in columns:
        distances = {
            index: column.distance(row.values[column.key], retain_only.get(column.key))
            for index, row in enumerate(rows)
            if row.kind.competes and column.key in row.values
        }
        if len(distances) < 2 or any(each != each for each in distances.values()):
            continue
        least = min(distances, key=distances.__getitem__)
        shown = column.text(rows[least].values[column.key])
        best |= {
            (index, column.key) for index in distances if column.text(rows[index].values[column.key]) == shown
        }
    return Table(tuple(rows), tuple(columns), frozenset(best))
