"""Rule of MUSE: the first evaluation that knows no more than the retain-only model."""

from collections.abc import Sequence

from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.callbacks.selection_rules.base import SelectionRule
from dipo_pl.errors import InputError
from dipo_pl.evaluation.verdict_rules import Metrics


class FirstForgotten(SelectionRule):
    """Rule that keeps the first evaluation whose metric of the forget set is at or below the retain-only model's.

    Until then the score is the remaining distance, negated. MUSE uses this rule with `forget_knowledge`.

    Args:
        metric: the metric, which is higher the more is known.
    """

    def __init__(self, metric: str = "forget_rouge_l_recall") -> None:
        self.metric = metric

    def check(self, evaluation: ForgetQuality) -> None:
        """Check that the retain-only model's result has the metric, on the same rows."""
        super().check(evaluation)
        assert evaluation.retain_metrics is not None
        self._refuse_without(evaluation.retain_metrics, "the retain-only model's result on these rows")

    def _refuse_without(self, metrics: Metrics, where: str) -> None:
        if self.metric not in metrics:
            raise InputError(
                f"selection.rule FirstForgotten needs {self.metric!r}, which is not in {where}: choose another "
                "--selection.rule.metric, or see forget_quality.generate_every and forget_quality.metrics"
            )

    def score(self, metrics: Metrics, target: Metrics, retain: Metrics | None) -> float | None:
        """Return 0 if the metric is at or below the retain-only model's, else the distance negated."""
        self._refuse_without(target, "the evaluation before training")
        assert retain is not None
        if self.metric not in metrics:
            return None
        return float(min(retain[self.metric] - metrics[self.metric], 0.0))

    def ends(self, scores: Sequence[float]) -> str | None:
        """Return whether an evaluation has reached the retain-only model."""
        return f"{self.metric} is at the retain-only model's" if 0 in scores else None
