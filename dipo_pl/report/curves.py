"""The numbers behind the pictures: distribution functions, the gap between two, and receiver operating curves."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]


class Gap(NamedTuple):
    """Where two distribution functions lie furthest apart."""

    at: float
    one: float
    other: float

    @property
    def size(self) -> float:
        """The Kolmogorov-Smirnov statistic D = max_x |F_one(x) - F_other(x)|."""
        return abs(self.one - self.other)


class Roc(NamedTuple):
    """Of calling a row seen whose score is at most a threshold, for every threshold.

    Attributes:
        false_positives: share of the holdout rows called seen, from 0 to 1.
        true_positives: share of the forget rows called seen, from 0 to 1.
        auc: the area below, P(holdout score > forget score) + P(equal) / 2.
    """

    false_positives: Numbers
    true_positives: Numbers
    auc: float


def ecdf(values: Sequence[float]) -> tuple[Numbers, Numbers]:
    """The distinct values in order, and the share of values that are at most each."""
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    return distinct, np.cumsum(counts) / len(values)


def ks_gap(one: Sequence[float], other: Sequence[float]) -> Gap:
    """The first place where the distribution functions of two samples lie furthest apart."""
    places = np.unique(np.concatenate([one, other]))
    shares = [np.searchsorted(np.sort(each), places, side="right") / len(each) for each in (one, other)]
    # Shares that are equal as fractions may differ in the last bit.
    furthest = int(np.argmax(np.abs(shares[0] - shares[1]).round(12)))
    return Gap(float(places[furthest]), float(shares[0][furthest]), float(shares[1][furthest]))


def roc(forget: Sequence[float], holdout: Sequence[float]) -> Roc:
    """Of membership scores, where a lower score says that a row was seen."""
    thresholds = np.unique(np.concatenate([forget, holdout]))
    seen, unseen = (
        np.concatenate([[0.0], np.searchsorted(np.sort(each), thresholds, side="right") / len(each)])
        for each in (forget, holdout)
    )
    area = float(np.sum(np.diff(unseen) * (seen[1:] + seen[:-1]) / 2))
    return Roc(unseen, seen, area)
