"""Whether an unlearned model can be told from one that never saw the forget set."""

import math
import sys
from typing import NamedTuple

import torch
from scipy.stats import ks_2samp
from torch import Tensor

from dipo_pl.metrics.functional._inputs import Numbers, as_float64, reject


class ForgetQuality(NamedTuple):
    """A two-sample Kolmogorov-Smirnov test; p near 1 is good forgetting, p near 0 is not."""

    p_value: float
    """In [0, 1]; 0.0 where it is too small for a float, from about n = 520 on."""
    log10_p: float
    """<= 0 and finite, also where p_value is 0.0."""
    ks_statistic: float
    """Largest distance of the two distribution functions, in [0, 1]."""

    def figures(self) -> dict[str, float]:
        """By the names that evaluations have them under."""
        return {
            "forget_quality": self.p_value,
            "forget_quality_log10_p": self.log10_p,
            "forget_quality_ks_statistic": self.ks_statistic,
        }


def forget_quality(unlearned: Numbers, retain: Numbers) -> ForgetQuality:
    r"""D = sup_x |F_unlearned(x) - F_retain(x)| and its two-sided p-value.

    Depends on the order of the values alone, so truth ratios, their inverses (TOFU's own choice) and
    their logarithms give the same result. `log_truth_ratio` is the safest: it cannot overflow into ties.
    With n rows p cannot fall below 2 / binom(2n, n): compare models on equally many rows only.

    Source: TOFU, arXiv:2401.06121, section 2.2, "Forget Quality"; p from `scipy.stats.ks_2samp`,
    method auto (exact up to n = 10,000).

    Args:
        unlearned, retain: [N] truth ratios on the same forget set, of the unlearned model and of one
            trained on the retain set alone.
    Raises: ValueError: not [N], empty, not finite, or of different lengths.
    """
    samples = _as_sample("unlearned", unlearned), _as_sample("retain", retain)
    n, n_retain = map(len, samples)
    if n != n_retain:
        raise ValueError(
            f"unlearned and retain must cover the same forget set, got {n} and {n_retain} rows; "
            "evaluate both models on the same rows"
        )
    test = ks_2samp(samples[0].numpy(), samples[1].numpy(), alternative="two-sided", method="auto")
    p_value, statistic = float(test.pvalue), float(test.statistic)
    # Below the smallest normal float, p_value has lost digits or is 0.
    log10_p = math.log10(p_value) if p_value >= sys.float_info.min else _log10_of_tiny_p(n, statistic)
    return ForgetQuality(p_value, log10_p, statistic)


def _log10_of_tiny_p(n: int, statistic: float) -> float:
    r"""log10 of p = 2 [binom(2n, n - h) - binom(2n, n - 2h) + ...] / binom(2n, n), h = nD, by its first term.

    Source: Hodges, "The significance probability of the Smirnov two-sample test", 1958, for two samples
    of n. The second term is about p^4, nothing beside a p that no float can hold.
    """
    h = round(n * statistic)
    return math.log10(2 * math.comb(2 * n, n - h)) - math.log10(math.comb(2 * n, n))


def _as_sample(name: str, values: Numbers) -> Tensor:
    sample = as_float64(name, values, "N")
    if len(sample) == 0:
        raise ValueError(f"{name} must hold at least one row, got none; evaluate the forget set first")
    advice = "pass log_truth_ratio of both models, and check that neither has diverged"
    reject(name, sample, ~torch.isfinite(sample), "finite", advice)
    return sample
