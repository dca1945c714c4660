"""The results: a row for each model, a column for each metric, and which values are best."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dipo_pl.report.columns import Better, Column, columns_of
from dipo_pl.report.run import Kind, Run
from dipo_pl.report.table import Table


@dataclass(frozen=True)
class Row:
    """A model with its metrics."""

    name: str
    kind: Kind
    metrics: dict[str, float]
    run: Run
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Results:
    """Rows in the order of the report.

    Attributes:
        best: (row, key of a column) of the values that are best among the models that compete.
        one_task: True if all of them had the same forget set; else none is best.
    """

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    best: frozenset[tuple[int, str]] = field(default_factory=frozenset)
    one_task: bool = True

    @property
    def headlines(self) -> "Results":
        """The results without the columns that only the full table has."""
        return replace(self, columns=tuple(each for each in self.columns if each.headline))

    @property
    def legend(self) -> str:
        """Meaning of the marked values, or why there are none."""
        if not self.one_task:
            return "No value is marked: the models had different forget sets."
        if not self.best:
            return "No value is marked: there are no two models to choose between."
        marked = "Marked: the best of the models that compete; reference models do not"
        if all(each.better is not Better.NEAR_RETAIN_ONLY for each in self.columns):
            return f"{marked}."
        if any(row.kind is Kind.RETAIN_ONLY for row in self.rows):
            return f"{marked}. On the forget set, the closest to the retain-only model is best."
        return f"{marked}. Without a retain-only model, most metrics of the forget set have no best value."

    def text(self, row: int, column: Column) -> str:
        """Return a cell as text; empty if nothing was measured."""
        return column.text(self.rows[row].metrics.get(column.key))

    def table(self) -> Table:
        """Return the results as texts."""
        head = ["model", "kind", *(each.title for each in self.columns)]
        keys = [each.key for each in self.columns]
        best = frozenset((row, keys.index(key) + 2) for row, key in self.best if key in keys)
        rows = [
            [row.name, row.kind, *(self.text(index, each) for each in self.columns)]
            for index, row in enumerate(self.rows)
        ]
        return Table("Results", self.legend, head, rows, labels=2, best=best)


def make_results(rows: Sequence[Row], one_task: bool = True) -> Results:
    """Return the results; in each column, all values that read like the best one are best."""
    columns = columns_of(key for row in rows for key in row.metrics)
    if not one_task:
        return Results(tuple(rows), tuple(columns), one_task=False)
    retain_only = next((row.metrics for row in rows if row.kind is Kind.RETAIN_ONLY), {})
    best: set[tuple[int, str]] = set()
    for column in columns:
        known = (index for index, row in enumerate(rows) if row.kind.competes and column.key in row.metrics)
        values = {index: rows[index].metrics[column.key] for index in known}
        distances = {each: column.distance(values[each], retain_only.get(column.key)) for each in values}
        if len(distances) < 2 or any(each != each for each in distances.values()):
            continue
        shown = column.text(values[min(distances, key=distances.__getitem__)])
        best |= {(index, column.key) for index, value in values.items() if column.text(value) == shown}
    return Results(tuple(rows), tuple(columns), frozenset(best))
