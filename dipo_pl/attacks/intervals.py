"""Intervals of what an attack finds, over the rows that it was tried on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from dipo_pl.attacks.subject import RETAIN_ONLY, TARGET, UNLEARNED

RESAMPLES = 2000
LEVEL = 0.95
Draws = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Intervals:
    """Intervals of 95 % confidence: bounds, or None where a model is missing.

    Attributes:
        value: of the unlearned model's value.
        distance: of that value minus the retain-only model's, on the same rows.
        gone: of the share of the way from the target to the retain-only model, or to the floor, that is gone.
        rows: number of rows that they rest on.
    """

    value: list[float]
    distance: list[float] | None
    gone: list[float] | None
    rows: int


def of_rows(by_row: Mapping[str, Sequence[float | None]], floor: float = 0.0) -> Intervals | None:
    """Return the intervals of means over rows, by the bootstrap: rows are drawn again and again, the same of all models.

    Expanded percentile intervals, which are as wide with few rows as Student's; Efron, Annals of Statistics 7, 1979, and
    Hesterberg, The American Statistician 69, 2015.

    Args:
        by_row: for each model the values of its rows, in the same order; rows that a model has no value for do not count.
        floor: value of a model that knows nothing.

    Returns:
        None if there are fewer than two such rows.
    """
    known = [each for each in zip(*by_row.values(), strict=True) if None not in each]
    if len(known) < 2:
        return None
    values = np.asarray(known, dtype=np.float64)
    drawn = resampled(len(values))
    means = {name: values[:, place][drawn].mean(axis=1) for place, name in enumerate(by_row)}
    return of_draws(means, len(values), floor)


def of_draws(draws: Mapping[str, Draws], rows: int, floor: float = 0.0, tests: int = 1) -> Intervals:
    """Return the intervals of values that were made again and again from drawn rows, [resamples] of each model.

    Args:
        draws: by model; the same place is of the same rows.
        rows: number of rows.
        floor: value of a model that knows nothing.
        tests: number of values of which this one was chosen; intervals of the distance are as much wider (Bonferroni).
    """
    now, target, base = (draws.get(each) for each in (UNLEARNED, TARGET, RETAIN_ONLY))
    assert now is not None
    distance = None if base is None else _bounds(now - base, (1 - LEVEL) / tests, rows)
    gone = None
    if target is not None:
        way = target - (floor if base is None else base)
        # Drawings in which there was nothing to forget say nothing.
        some = np.abs(way) > 1e-12
        gone = _bounds((target - now)[some] / way[some], 1 - LEVEL, rows) if some.any() else None
    return Intervals(_bounds(now, 1 - LEVEL, rows), distance, gone, rows)


def resampled(count: int, stream: int = 0) -> npt.NDArray[np.int64]:
    """Return [resamples, count] row numbers, which depend on nothing but their count and the stream.

    Args:
        count: number of rows.
        stream: another one draws independently.
    """
    return np.random.default_rng(stream).integers(count, size=(RESAMPLES, count))


def area_draws(members: Sequence[float], nonmembers: Sequence[float]) -> Draws:
    """Return the area under the curve of drawn rows, [resamples]; see `dipo_pl.metrics.membership.auroc`.

    Members and nonmembers are drawn independently, the same ones for any values of equally many.

    Args:
        members: scores of the rows that are to be forgotten.
        nonmembers: scores of rows that no model has seen.
    """
    seen, unseen = np.asarray(members)[:, None], np.asarray(nonmembers)[None]
    won = (unseen > seen) + (unseen == seen) / 2
    # How often each row is drawn.
    times = [
        np.stack([np.bincount(each, minlength=count) for each in resampled(count, stream)])
        for stream, count in enumerate(won.shape)
    ]
    areas: Draws = ((times[0] @ won) * times[1]).sum(axis=1) / won.size
    return areas


def _bounds(values: Draws, outside: float, rows: int) -> list[float]:
    r"""Return the quantiles p and 1 - p of drawn values, p = Phi(-sqrt(n / (n - 1)) t), t Student's quantile of n - 1."""
    # Half a second, which commands that compute nothing need not wait.
    from scipy.stats import t

    share = NormalDist().cdf(-math.sqrt(rows / (rows - 1)) * float(t.ppf(1 - outside / 2, rows - 1)))
    low, high = np.quantile(values, [share, 1 - share])
    return [float(low), float(high)]
