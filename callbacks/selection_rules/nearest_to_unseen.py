"""Rule that looks at all that the verdict looks at."""

from collections.abc import Sequence

from dipo_pl.callbacks.selection_rules.utility_kept import UtilityKept
from dipo_pl.errors import check_share
from dipo_pl.evaluation.deviation import FARTHEST, deviation
from dipo_pl.evaluation.verdict_rules import Evidence, Metrics


class NearestToUnseen(UtilityKept):
    """Rule that keeps the evaluation nearest to a model that never saw the rows, among those that keep utility.

    The score is minus the deviation in units of the thresholds (`dipo_pl.evaluation.deviation.deviation`), over
    P(forget), ROUGE, extraction strength, membership and Forget Quality: -1 and above is forgotten by each of them.
    Membership and Forget Quality lower the score where the rows are erased too far. The more evidence there is (a
    retain-only model, a holdout), the better the rule knows where to end.

    Where no step meets all rules of the verdict, Forget Quality can be the one that is asked for first: any evaluation with
    `forget_quality` comes before all without it.

    Args:
        utility_share: see `UtilityKept`.
        patience: see `UtilityKept`.
        forget_quality: p-value that Forget Quality must have where it is measured, in [0, 1]; 0 asks for none.
    """

    needs_answers = False

    def __init__(self, utility_share: float = 0.95, patience: int = 3, forget_quality: float = 0.0) -> None:
        super().__init__(utility_share, patience)
        check_share("selection.rule.forget_quality", forget_quality, zero=True)
        self.forget_quality = forget_quality

    def score(self, metrics: Metrics, target: Metrics, retain: Metrics | None) -> float | None:
        """Return the deviation, negated, as the base class does; None if no measure of forgetting was taken now."""
        score = super().score(metrics, target, retain)
        now, before = self.evidence(metrics, target, retain), self.evidence(target, target, retain)
        unknown = deviation(now, self.thresholds) is None and deviation(before, self.thresholds) is not None
        return None if unknown else score

    def distance(self, evidence: Evidence) -> float:
        """Return the deviation; 0 if the target knew nothing of the rows."""
        lacks = evidence.now.get("forget_quality", 1.0) < self.forget_quality
        return (deviation(evidence, self.thresholds) or 0.0) + (FARTHEST if lacks else 0.0)

    def ends(self, scores: Sequence[float]) -> str | None:
        """Return whether the rows are forgotten, or no better score is expected."""
        if scores and scores[-1] >= -1:
            return "the forget rows are like rows that the model never saw"
        return super().ends(scores)
