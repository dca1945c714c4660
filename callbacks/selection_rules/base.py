"""Base class of the rules that choose the checkpoint to keep."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.errors import InputError
from dipo_pl.evaluation.verdict_rules import Metrics, Thresholds

# The score of lost utility, below log10 of any p-value, which is not smaller than about -(number of forget rows).
LOST = -1e6
NO_RULE = "--selection.rule null --selection.stop false"


class SelectionRule(ABC):
    """Base class of rules that score each evaluation; the first checkpoint with the highest score is kept.

    Attributes:
        rows: number of rows of each evaluation set; empty if not known. `Selection` fills in this and what follows.
        forgotten: names of the evaluation sets that are to be forgotten.
        wrong_answers: the target's mean probability of wrong answers to the questions of these sets, by set.
        thresholds: of the verdict.
        needs_answers: evaluations without generated answers have no score.
    """

    needs_answers = True
    rows: Mapping[str, int] = MappingProxyType({})
    forgotten: Sequence[str] = ("forget",)
    wrong_answers: Mapping[str, float] = MappingProxyType({})
    thresholds = Thresholds()

    @abstractmethod
    def score(self, metrics: Metrics, target: Metrics, retain: Metrics | None) -> float | None:
        """Return the score of an evaluation, or None if it lacks a metric that the rule needs.

        Args:
            metrics: the evaluation.
            target: the evaluation before training.
            retain: the result of the retain-only model; None if it is not given.

        Raises:
            InputError: a metric that the rule needs is never measured in this run.
        """

    def check(self, evaluation: ForgetQuality) -> None:
        """Check before the first evaluation that the rule can be applied; raise InputError if it cannot."""
        if evaluation.retain is None:
            raise InputError(
                f"selection.rule {type(self).__name__} needs a retain-only model: give its result as "
                "forget_quality.retain_result, or --selection.rule NearestToUnseen, which needs none"
            )

    @abstractmethod
    def ends(self, scores: Sequence[float]) -> str | None:
        """Return why no better score is expected after these, as a clause; None if one may still come."""
