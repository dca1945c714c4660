"""Forget Quality: a test whether an unlearned model differs from one that never saw the forget set."""

import math
import sys
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from dipo_pl.metrics.base import FORGET, EvaluationMetric
from dipo_pl.metrics.inputs import Numbers, as_float64, check_lengths, reject
from dipo_pl.metrics.result import EvaluationResult, SetResult


class ForgetQualityTest(NamedTuple):
    """Result of a two-sample Kolmogorov-Smirnov test; p near 1 means good forgetting.

    Attributes:
        forget_quality: the p-value, in [0, 1]; 0.0 if it underflows, from about n = 520 on.
        forget_quality_log10_p: its logarithm, <= 0 and finite, also where the p-value underflows.
        forget_quality_ks_statistic: largest distance of the two distribution functions, in [0, 1].
    """

    forget_quality: float
    forget_quality_log10_p: float
    forget_quality_ks_statistic: float


def forget_quality(unlearned: Numbers, retain: Numbers) -> ForgetQualityTest:
    r"""Return D = sup_x |F_unlearned(x) - F_retain(x)| and its two-sided p-value.

    The test depends on the order of the values only, so truth ratios, their inverses (TOFU's own choice) and their
    logarithms give the same result; `log_truth_ratio` cannot overflow into ties. With n rows p cannot be below
    2 / binom(2n, n): compare models on equally many rows only.

    Source: TOFU, arXiv:2401.06121, section 2.2, "Forget Quality"; p from `scipy.stats.ks_2samp`, method auto (exact
    up to n = 10,000).

    Args:
        unlearned: [N] truth ratios of the unlearned model on the forget set.
        retain: [N] truth ratios of a model trained on the retain set only, on the same forget set.

    Raises:
        ValueError: an argument is not [N], empty or not finite, or their lengths differ.
    """
    # Half a second, which commands that compute nothing need not wait.
    from scipy.stats import ks_2samp

    samples = _as_sample("unlearned", unlearned), _as_sample("retain", retain)
    check_lengths("unlearned", samples[0], "retain", samples[1])
    test = ks_2samp(samples[0].numpy(), samples[1].numpy(), alternative="two-sided", method="auto")
    p_value, statistic = float(test.pvalue), float(test.statistic)
    # Below the smallest normal float, p_value has lost digits or is 0.
    tiny = p_value < sys.float_info.min
    log10_p = _log10_of_tiny_p(len(samples[0]), statistic) if tiny else math.log10(p_value)
    return ForgetQualityTest(p_value, log10_p, statistic)


class ForgetQuality(EvaluationMetric):
    """Metrics `forget_quality`, `_log10_p` and `_ks_statistic` of the forget set, against a retain-only model's result.

    They are absent if a row of either has no truth ratio.
    """

    def across(self, sets: Mapping[str, SetResult], retain: EvaluationResult | None) -> dict[str, float]:
        """Return the test of the truth ratios of both models on the forget set."""
        both = [sets.get(FORGET), None if retain is None else retain.sets.get(FORGET)]
        ours, theirs = (None if found is None else found.values("log_truth_ratio") for found in both)
        if ours is None or theirs is None:
            return {}
        return forget_quality(ours, theirs)._asdict()


def _log10_of_tiny_p(n: int, statistic: float) -> float:
    r"""Return log10 of p = 2 [binom(2n, n - h) - binom(2n, n - 2h) + ...] / binom(2n, n), h = nD, by its first term.

    Source: Hodges, "The significance probability of the Smirnov two-sample test", 1958, for two samples of n. The
    second term is about p^4, negligible beside a p that no float can represent.
    """
    h = round(n * statistic)
    return math.log10(2 * math.comb(2 * n, n - h)) - math.log10(math.comb(2 * n, n))


def _as_sample(name: str, values: Numbers) -> Tensor:
    sample = as_float64(name, values, "N")
    if len(sample) == 0:
        raise ValueError(f"{name} must have at least one row (got none): evaluate the forget set first")
    advice = "pass log_truth_ratio of both models, and check that neither has diverged"
    reject(name, sample, lambda each: ~each.isfinite(), "finite", advice)
    return sample
