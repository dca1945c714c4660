"""Repetitions of one config under different seeds: means with confidence intervals."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dipo_pl.report.columns import Column
from dipo_pl.report.intervals import METHOD, Interval, bootstrap_mean
from dipo_pl.report.run import Kind, Run
from dipo_pl.report.table import Table


@dataclass(frozen=True)
class SeedGroup:
    """Runs of one config under different seeds, with the intervals of the metrics that all of them have."""

    name: str
    runs: tuple[Run, ...]
    seeds: tuple[int, ...]
    metrics: dict[str, Interval]


def seed_groups(runs: Sequence[Run]) -> list[SeedGroup]:
    """Return the groups of at least two seeds; the first run counts where a seed is repeated.

    Stages of sequences, and relearned and quantized models, are in no group.
    """
    groups: dict[tuple[Kind, str], dict[int, Run]] = {}
    for run in runs:
        seed = run.manifest.get("seed")
        if run.config and not run.probe and run.stage is None and isinstance(seed, int):
            groups.setdefault((run.kind, run.recipe), {}).setdefault(seed, run)
    return [_group(by_seed) for by_seed in groups.values() if len(by_seed) > 1]


def _group(by_seed: dict[int, Run]) -> SeedGroup:
    runs = tuple(by_seed.values())
    shared = [key for key in runs[0].metrics if all(key in each.metrics for each in runs)]
    if len({each.chosen.utility_parts for each in runs}) > 1:
        shared = [key for key in shared if key != "model_utility"]
    metrics = {key: bootstrap_mean([each.metrics[key] for each in runs]) for key in shared}
    return SeedGroup(_shared_name(by_seed), runs, tuple(by_seed), metrics)


def _shared_name(by_seed: Mapping[int, Run]) -> str:
    """Return the runs' name without their seeds or numbers: dipo of dipo-seed0 and dipo-seed1; else the first one's."""
    for number in ("0*{seed}", r"\d+"):
        names = {
            re.sub(rf"[-_. /]*(seed)?[-_. ]*(?<!\d){number.format(seed=seed)}$", "", run.name)
            for seed, run in by_seed.items()
        }
        if len(names) == 1 and names != {""}:
            return names.pop()
    return next(iter(by_seed.values())).name


def interval_text(interval: Interval | None, column: Column) -> str:
    """Return a mean with its interval; empty if there is none, as where a seed lacks the metric."""
    if interval is None:
        return ""
    mean, low, high = map(column.text, interval)
    return f"{mean} [{low}, {high}]"


def seed_table(groups: Sequence[SeedGroup], columns: Iterable[Column]) -> Table:
    """Return the means of all groups, a row for each of `columns` that some group has."""
    return Table(
        "Several seeds",
        f"Mean [low, high]: {METHOD}. The runs differ in seeds and names only. With few seeds the interval is too narrow: "
        "it never reaches beyond the smallest and the largest value.",
        ["metric", *(f"{each.name} (seeds {', '.join(map(str, each.seeds))})" for each in groups)],
        [
            [column.title, *(interval_text(group.metrics.get(column.key), column) for group in groups)]
            for column in columns
            if any(column.key in group.metrics for group in groups)
        ],
    )
