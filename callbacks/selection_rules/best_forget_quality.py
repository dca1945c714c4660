"""Rule of TOFU: Forget Quality, as long as Model Utility is kept."""

from collections.abc import Sequence

from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.callbacks.selection_rules.base import LOST, SelectionRule
from dipo_pl.errors import InputError, check_count, check_share
from dipo_pl.evaluation.verdict_rules import Metrics
from dipo_pl.metrics.base import FORGET

_NO_QUALITY = (
    "selection.rule BestForgetQuality needs Forget Quality, which is not measured: the forget rows lack wrong answers "
    "(perturbed_answer, a list in each row): give --selection.rule NearestToUnseen, which needs none"
)
_NO_UTILITY = (
    "selection.rule BestForgetQuality needs Model Utility, which is not measured: see forget_quality.utility_sets and "
    "forget_quality.generate_every"
)


class BestForgetQuality(SelectionRule):
    """Rule that keeps the best Forget Quality among evaluations that keep Model Utility, else the best utility.

    The score is log10 of Forget Quality; if utility is lost, -1e6 minus the missing share.

    Args:
        utility_share: share of the target's Model Utility that must be kept, in (0, 1].
        patience: evaluations without a better score after which no better one is expected.
    """

    def __init__(self, utility_share: float = 0.95, patience: int = 3) -> None:
        check_share("selection.rule.utility_share", utility_share)
        check_count("selection.rule.patience", patience)
        self.utility_share = utility_share
        self.patience = patience

    def check(self, evaluation: ForgetQuality) -> None:
        """Check that there is a retain-only model with truth ratios, and that Model Utility will be measured."""
        super().check(evaluation)
        assert evaluation.retain is not None
        theirs = evaluation.retain.sets.get(FORGET)
        if theirs is None or theirs.values("log_truth_ratio") is None:
            raise InputError(_NO_QUALITY)
        if not evaluation.utility_sets or evaluation.generate_every == 0:
            raise InputError(_NO_UTILITY)

    def score(self, metrics: Metrics, target: Metrics, retain: Metrics | None) -> float | None:
        """Return log10 of Forget Quality, less if utility is lost."""
        if "model_utility" not in target:
            raise InputError(_NO_UTILITY)
        if "forget_quality_log10_p" not in target:
            raise InputError(_NO_QUALITY)
        if "model_utility" not in metrics:
            return None
        share = metrics["model_utility"] / target["model_utility"] if target["model_utility"] else 1.0
        if share < self.utility_share:
            return float(LOST - (self.utility_share - share))
        return float(metrics["forget_quality_log10_p"])

    def ends(self, scores: Sequence[float]) -> str | None:
        """Return whether the last `patience` scores are not better than one before them."""
        best = max(range(len(scores)), key=scores.__getitem__, default=0)
        if len(scores) - 1 - best < self.patience:
            return None
        return f"no checkpoint was better in the last {self.patience} evaluations"
