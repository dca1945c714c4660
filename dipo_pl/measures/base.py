"""What a measure is: values of each row, figures of each set, figures of several sets."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from dipo_pl.evaluation.conventions import Convention
from dipo_pl.evaluation.observation import Observation
from dipo_pl.evaluation.result import EvaluationResult, SetResult
from dipo_pl.evaluation_set import EvaluationSet

FORGET, HOLDOUT = "forget", "holdout"


@dataclass(frozen=True)
class Answered:
    """An evaluation set with what a model makes of it.

    Attributes:
        evaluation_set: its rows.
        observations: one a row, in the order of the set.
        convention: that the figures follow.
        retain: what a retain-only model makes of the same rows; None where that is not known.
    """

    evaluation_set: EvaluationSet
    observations: Sequence[Observation]
    convention: Convention
    retain: SetResult | None = None

    @property
    def name(self) -> str:
        return self.evaluation_set.name

    @property
    def nll(self) -> list[tuple[float, ...]]:
        """[N, K] nats per token of each answer; K is 1, or 2 and the number of wrong answers."""
        return [each.nll for each in self.observations]

    @property
    def has_wrong_answers(self) -> bool:
        return len(self.observations[0].nll) > 1

    @property
    def generations(self) -> list[str] | None:
        """[N] texts; None where none were generated."""
        texts = [each.generation for each in self.observations if each.generation is not None]
        return texts if len(texts) == len(self.observations) else None


class Measure(ABC):
    """A family of figures. A subclass gives the values of rows; the rest has defaults."""

    needs_gradient_norms = False

    @property
    def settings(self) -> dict[str, float]:
        """What changes the figures, by name; results with other ones are not compared."""
        return {}

    @abstractmethod
    def rows(self, answered: Answered) -> dict[str, Tensor]:
        """[N] values by name; none where this set does not have what they are made of."""

    def figures(self, answered: Answered, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Of one set, from the values of its rows; their means unless a subclass knows better."""
        return {name: float(each.mean()) for name, each in values.items()}

    def across(self, sets: Mapping[str, SetResult], retain: EvaluationResult | None) -> dict[str, float]:
        """Of several sets, and against a retain-only model's result where there is one."""
        return {}
