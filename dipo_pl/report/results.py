"""The results: a row for each model, a column for each metric, and which values are best."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dipo_pl.report.columns import Better, Column, columns_of
from dipo_pl.report.run import Kind, Run
from dipo_pl.report.table import Table
from dipo_pl.report.verdicts import FORGOT, Verdict

# The short table has the first six of these that were measured, so that utility and every kind of forgetting is in it.
_SHORT = (
    "forget_probability", "model_utility", "forget_rouge_l_recall", "forget_knowledge", "retain_knowledge",
    "forget_verbatim", "forget_extraction_strength", "forget_quality", "membership_min_k_auc", "retain_probability",
    "retain_rouge_l_recall", "priv_leak",
)  # fmt: skip
_SHORT_COLUMNS = 6


@dataclass(frozen=True)
class Row:
    """A model with its metrics, and its verdict if it is an unlearning run."""

    name: str
    kind: Kind
    metrics: dict[str, float]
    run: Run
    notes: tuple[str, ...] = ()
    verdict: Verdict | None = None

    @property
    def standing(self) -> str:
        """The verdict in words; what another kind of run is there for."""
        return self.kind.purpose if self.verdict is None else self.verdict.label

    @property
    def competes(self) -> bool:
        """True if its values may be marked as best: never if it is known not to have forgotten."""
        return self.kind.competes and (self.verdict is None or self.verdict.value in FORGOT)


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
    def short(self) -> "Results":
        """The results with the six columns that matter most, and the metrics that a user added."""
        known = [each.key for each in self.headlines.columns]
        chosen = {*[key for key in _SHORT if key in known][:_SHORT_COLUMNS]}
        own = {each.key for each in self.headlines.columns if not each.is_described}
        return replace(self, columns=tuple(each for each in self.columns if each.key in chosen | own))

    def missed(self, row: int, column: Column) -> bool:
        """Return True if the value of a run misses the threshold of its verdict's rule."""
        return _misses(self.rows[row], column)

    @property
    def legend(self) -> str:
        """Meaning of the marked values, or why there are none."""
        parts = [self._legend]
        if any(row.kind.competes and not row.competes for row in self.rows):
            parts.append("No value of a run is best that did not forget, or of which it cannot be told.")
        if any(row.verdict is not None and row.verdict.missed for row in self.rows):
            parts.append("An exclamation mark: misses the threshold of a rule of the verdict.")
        return " ".join(parts)

    @property
    def _legend(self) -> str:
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
        head = ["model", "kind", "verdict", *(each.title for each in self.columns)]
        keys = [each.key for each in self.columns]
        best = frozenset((row, keys.index(key) + 3) for row, key in self.best if key in keys)
        missed = {
            (row, place)
            for row in range(len(self.rows))
            for place, each in enumerate(self.columns, start=3)
            if self.missed(row, each)
        }
        rows = [
            [row.name, row.kind, row.standing, *(self.text(index, each) for each in self.columns)]
            for index, row in enumerate(self.rows)
        ]
        return Table("Results", self.legend, head, rows, labels=3, best=best, missed=frozenset(missed))


def _misses(row: Row, column: Column) -> bool:
    return row.verdict is not None and column.key in row.verdict.missed


def make_results(rows: Sequence[Row], one_task: bool = True) -> Results:
    """Return the results; in each column, all values that read like the best one are best."""
    columns = columns_of(key for row in rows for key in row.metrics)
    if not one_task:
        return Results(tuple(rows), tuple(columns), one_task=False)
    retain_only = next((row.metrics for row in rows if row.kind is Kind.RETAIN_ONLY), {})
    best: set[tuple[int, str]] = set()
    for column in columns:
        known = (index for index, row in enumerate(rows) if row.competes and column.key in row.metrics)
        values = {index: rows[index].metrics[column.key] for index in known}
        distances = {each: column.distance(values[each], retain_only.get(column.key)) for each in values}
        if len(distances) < 2 or any(each != each for each in distances.values()):
            continue
        shown = column.text(values[min(distances, key=distances.__getitem__)])
        best |= {
            (index, column.key)
            for index, value in values.items()
            if column.text(value) == shown and not _misses(rows[index], column)
        }
    return Results(tuple(rows), tuple(columns), frozenset(best))
