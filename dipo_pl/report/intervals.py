"""Mean over seeds with its bootstrap interval."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

RESAMPLES, LEVEL = 10_000, 0.95
METHOD = f"{LEVEL:.0%} percentile bootstrap of the mean over seeds, {RESAMPLES:,} resamples, seed 0"


class Interval(NamedTuple):
    """Mean with the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: Sequence[float]) -> Interval:
    """Return the mean of at least two values with a percentile bootstrap interval.

    With few values the interval is too narrow: it never reaches beyond the smallest and the largest. Source: Efron and
    Tibshirani 1993, chapter 13.
    """
    # Imported here because it takes a second, and most reports have no repeated seeds.
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Interval(fmean(values), float(found.low), float(found.high))
