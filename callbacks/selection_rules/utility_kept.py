"""Base class of rules that need no retain-only model."""

from abc import abstractmethod
from collections.abc import Sequence

from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.callbacks.selection_rules.base import LOST, NO_RULE, SelectionRule
from dipo_pl.errors import InputError, check_count, check_share
from dipo_pl.evaluation.verdict_rules import (
    KNOWS_NOTHING,
    UTILITIES,
    Evidence,
    Metrics,
    kept_utility,
    measured_again,
)


class UtilityKept(SelectionRule):
    """Base class of rules that score evaluations with enough utility, and need no retain-only model.

    Utility is Model Utility, KnowMem of the retain set, or P(retain): the first one that was measured. If it is lost, the
    score is -1e6 minus the share that is missing.

    Args:
        utility_share: share of the target's utility that must be kept, in (0, 1].
        patience: evaluations without a better score, and without utility coming back, after which no better one is
            expected.
    """

    def __init__(self, utility_share: float = 0.95, patience: int = 3) -> None:
        check_share("selection.rule.utility_share", utility_share)
        check_count("selection.rule.patience", patience)
        self.utility_share = utility_share
        self.patience = patience

    def evidence(self, metrics: Metrics, target: Metrics, retain: Metrics | None) -> Evidence:
        """Return what the verdict would be made from."""
        return Evidence(target, metrics, retain, self.forgotten, self.wrong_answers, self.rows)

    @abstractmethod
    def distance(self, evidence: Evidence) -> float:
        """Return how far an evaluation is from a model that never saw the rows, at least 0."""

    def check(self, evaluation: ForgetQuality) -> None:
        """Check nothing: what is missing is seen in the evaluation before training."""

    def score(self, metrics: Metrics, target: Metrics, retain: Metrics | None) -> float | None:
        """Return the distance, negated; less if utility is lost, and None if utility was not measured now."""
        unknown = any(f"{rows}_probability" not in target for rows in self.forgotten)
        lacks = "P(forget)" if unknown else "a utility" if UTILITIES.keys().isdisjoint(target) else None
        if lacks is not None:
            raise InputError(
                f"selection.rule {type(self).__name__} needs {lacks}, which is not measured: add forget and retain to "
                f"data.evaluate, or give {NO_RULE}"
            )
        kept = kept_utility(measured_again(target, metrics), metrics)
        if kept is None and any(target.get(each, 0) >= KNOWS_NOTHING for each in UTILITIES):
            return None
        if kept is not None and kept.share < self.utility_share:
            return LOST - (self.utility_share - kept.share)
        return -self.distance(self.evidence(metrics, target, retain))

    def ends(self, scores: Sequence[float]) -> str | None:
        """Return whether the last `patience` scores are no better than one before them."""
        before, last = scores[: -self.patience], scores[-self.patience :]
        # Utility that was lost and rises again may come back.
        recovers = len(last) > 1 and last[-1] == max(last) > last[-2]
        if not before or max(before) < max(last) or (last[-1] < LOST and recovers):
            return None
        lost = "utility was lost" if max(last) < LOST else "forgetting did not go on"
        return f"{lost} in the last {self.patience} evaluations"
