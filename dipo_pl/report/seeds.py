"""Several seeds of one config: their mean, and how sure it is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from dipo_pl.report.runs import Kind, Run

RESAMPLES, LEVEL = 10_000, 0.95
METHOD = f"{LEVEL:.0%} percentile bootstrap of the mean over seeds, {RESAMPLES:,} resamples, seed 0"


class Interval(NamedTuple):
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class SeedGroup:
    """Runs of one config under different seeds.

    Attributes:
        figures: of the figures that all of them have.
    """

    name: str
    runs: tuple[Run, ...]
    seeds: tuple[int, ...]
    figures: dict[str, Interval]


def bootstrap_mean(values: Sequence[float]) -> Interval:
    """The mean with a percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    With few values it is too narrow: of 3, it cannot reach beyond the least and the greatest.
    """
    sample = np.asarray(values, dtype=np.float64)
    chosen = np.random.default_rng(0).integers(len(sample), size=(RESAMPLES, len(sample)))
    low, high = np.quantile(sample[chosen].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(sample.mean()), float(low), float(high))


def seed_groups(runs: Sequence[Run]) -> list[SeedGroup]:
    """The groups of at least two seeds; of runs that repeat a seed the first counts. Stages are in none."""
    groups: dict[tuple[Kind, str], dict[int, Run]] = {}
    for run in runs:
        seed = run.manifest.get("seed")
        if run.config and not run.probe and run.place is None and isinstance(seed, int):
            groups.setdefault((run.kind, run.recipe), {}).setdefault(seed, run)
    return [_group(by_seed) for by_seed in groups.values() if len(by_seed) > 1]


def _group(by_seed: dict[int, Run]) -> SeedGroup:
    runs = tuple(by_seed.values())
    shared = [key for key in runs[0].metrics if all(key in each.metrics for each in runs)]
    if len({each.chosen.utility_parts for each in runs}) > 1:
        shared = [key for key in shared if key != "model_utility"]
    figures = {key: bootstrap_mean([each.metrics[key] for each in runs]) for key in shared}
    return SeedGroup(_shared_name([each.name for each in runs]), runs, tuple(by_seed), figures)


def _shared_name(names: Sequence[str]) -> str:
    """What the names begin with: dipo-seed0 and dipo-seed1 are dipo."""
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    beginning = "".join(letters[0] for letters in alike)
    return re.sub(r"[-_. ]*(seed)?[-_. ]*\d*$", "", beginning) or names[0]
