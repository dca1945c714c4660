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
# Values that differ by less are the same but for rounding.
SAME = 1e-9
Draws = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Intervals:
    """Intervals of 95 % confidence: bounds, or None where a model is missing or there are fewer than two rows.

    Attributes:
        value: of the unlearned model's value.
        distance: of that value minus the retain-only model's, on the same rows.
        gone: of the share of the way from the target to the retain-only model, or to the floor, that is gone.
        rows: number of rows that they rest on.
    """

    value: list[float] | None
    distance: list[float] | None
    gone: list[float] | None
    rows: int


def of_rows(by_row: Mapping[str, Sequence[float | None]], floor: float = 0.0) -> Intervals:
    """Return the intervals of means over rows, by the bootstrap: rows are drawn again and again, the same of all models.

    Expanded percentile intervals, which are as wide with few rows as Student's; Efron, Annals of Statistics 7, 1979, and
    Hesterberg, The American Statistician 69, 2015. Where drawings do not reach so far, as of two to four rows, they are
    Student's. Of rows that are all alike see `of_draws`.

    Args:
        by_row: for each model the values of its rows, in the same order; rows that a model has no value for do not count.
        floor: value of a model that knows nothing.
    """
    known = [each for each in zip(*by_row.values(), strict=True) if None not in each]
    if len(known) < 2:
        return Intervals(None, None, None, len(known))
    values = np.asarray(known, dtype=np.float64)
    drawn = resampled(len(values))
    means = {name: values[:, place][drawn].mean(axis=1) for place, name in enumerate(by_row)}
    return of_draws(means, len(values), floor)


def of_draws(draws: Mapping[str, Draws], rows: int, floor: float = 0.0, tests: int = 1) -> Intervals:
    r"""Return the intervals of values that were made again and again from drawn rows, [resamples] of each model.

    Where all drawings are the same x, rows that were not seen may still differ. With 95 % confidence no more than the share
    p = 1 - 0.05^(1/n) of them does (Clopper and Pearson, with 0 of n; about 3 / n, the rule of three). Of values in [a, b]
    the interval is then [x - p (x - a), x + p (b - x)]: [0, 1] for a model, [-1, 1] for a distance. Values outside of
    [0, 1] have no such bounds, and the interval is x.

    Args:
        draws: by model; the same place is of the same rows.
        rows: number of rows.
        floor: value of a model that knows nothing.
        tests: number of values of which this one was chosen; intervals of the distance are as much wider (Bonferroni).
    """
    now, target, base = (draws.get(each) for each in (UNLEARNED, TARGET, RETAIN_ONLY))
    assert now is not None
    shares = all(((each > -SAME) & (each < 1 + SAME)).all() for each in draws.values())
    widest = ((0.0, 1.0), (-1.0, 1.0)) if shares else (None, None)
    distance = None if base is None else _bounds(now - base, (1 - LEVEL) / tests, rows, widest[1])
    gone = None
    if target is not None:
        way = target - (floor if base is None else base)
        # Drawings in which there was nothing to forget say nothing.
        some = np.abs(way) > 1e-12
        gone = _bounds((target - now)[some] / way[some], 1 - LEVEL, rows, widest[0]) if some.any() else None
    return Intervals(_bounds(now, 1 - LEVEL, rows, widest[0]), distance, gone, rows)


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


def _bounds(
    values: Draws, outside: float, rows: int, widest: tuple[float, float] | None = None
) -> list[float]:
    r"""Return the quantiles p and 1 - p of drawn values, p = Phi(-sqrt(n / (n - 1)) t), t Student's quantile of n - 1.

    Args:
        values: drawn.
        outside: share of drawings that may lie outside.
        rows: n.
        widest: least and greatest value that there can be; None where it is not known.
    """
    # Half a second, which commands that compute nothing need not wait.
    from scipy.stats import t

    if np.ptp(values) < SAME:
        same = float(values[0])
        least, most = widest or (same, same)
        unseen = 1 - outside ** (1 / rows)
        return [same - unseen * max(0.0, same - least), same + unseen * max(0.0, most - same)]
    width = math.sqrt(rows / (rows - 1)) * float(t.ppf(1 - outside / 2, rows - 1))
    share = NormalDist().cdf(-width)
    # The rarest drawing of all has this chance.
    if share < rows**-rows:
        mean, half = float(values.mean()), width * float(values.std())
        least, most = widest or (-math.inf, math.inf)
        return [max(mean - half, min(mean, least)), min(mean + half, max(mean, most))]
    low, high = np.quantile(values, [share, 1 - share])
    return [float(low), float(high)]
