"""The rows and evaluation sets that a data module reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.rows import Row


@dataclass(frozen=True)
class RowSets:
    """The rows to forget, those to retain, and the sets to measure."""

    forget: Sequence[Row]
    retain: Sequence[Row]
    evaluation: Sequence[EvaluationSet]
