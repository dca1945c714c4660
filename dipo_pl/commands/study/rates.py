"""Learning rates that tuning runs have chosen, by one rule for all rows."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any, NamedTuple

from dipo_pl.commands.study.plan import Job


class Choice(NamedTuple):
    """Learning rate of a row, with the mean score of each that was tried."""

    rate: float
    scores: dict[float, float]


def chosen_rate(tuning: Mapping[float, list[float]]) -> Choice:
    """Return the rate with the highest mean score, of equal ones the lowest.

    Args:
        tuning: scores by learning rate, one for each seed.
    """
    scores = {rate: fmean(each) for rate, each in sorted(tuning.items())}
    # The first of equal ones, and they ascend.
    return Choice(max(scores, key=scores.__getitem__), scores)


def choice_of(jobs: tuple[Job, ...], runs: Mapping[str, Mapping[str, Any]]) -> Choice:
    """Return the choice that finished tuning runs make.

    Args:
        jobs: the tuning runs of a row.
        runs: records by key.
    """
    scores: dict[float, list[float]] = {}
    for each in jobs:
        assert each.rate is not None
        scores.setdefault(each.rate, []).append(float(runs[each.key]["score"]))
    return chosen_rate(scores)
