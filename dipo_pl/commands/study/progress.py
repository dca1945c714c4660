"""Progress of a study in one line: what is done, what runs, and the time left."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from dipo_pl.callbacks.pace import duration
from dipo_pl.commands.study.plan import Job, Kind
from dipo_pl.commands.study.results import Results
from dipo_pl.commands.study.runner import Runner
from dipo_pl.errors import InputError
from dipo_pl.report.drawing import shortened


class Part(NamedTuple):
    """State of a run that is running.

    Attributes:
        kind: its kind.
        elapsed: seconds since it was started, or resumed.
        share: share of its steps that it has evaluated; None if that is not known.
        begun: the share that earlier starts had done when it was resumed.
    """

    kind: str
    elapsed: float
    share: float | None
    begun: float = 0.0


def status_text(
    runner: Runner, results: Results, at_a_time: int, machine: Mapping[str, object], width: int | None
) -> str:
    """Return the status line of a study, at most `width` characters long."""
    running = [*runner.running]
    parts = [
        Part(_kind(each.job), time.monotonic() - each.since, *shares(each.job, runner.plan.folder))
        for each in running
    ]
    titles = "; ".join(_title(run.job, part.share) for run, part in zip(running, parts, strict=True))
    left = seconds_left(
        parts, [_kind(each) for each in runner.todo], known_seconds(results, machine), at_a_time
    )
    after = "time left not known yet" if left is None else f"about {duration(left)} left"
    text = f"study: {runner.ended}/{runner.total} runs done, {after}; running: {titles or 'starting'}"
    return text if width is None else shortened(text, width)


def seconds_left(
    running: Sequence[Part],
    waiting: Sequence[str],
    known: Mapping[str, Sequence[float]],
    at_a_time: int,
) -> float | None:
    """Return the estimated seconds to the end of the study; None if there is nothing to tell from.

    Args:
        running: the runs that are running.
        waiting: kinds of the runs that wait.
        known: seconds of finished runs by kind.
        at_a_time: runs at a time.
    """
    means = {kind: fmean(each) for kind, each in known.items() if each}
    wholes = [seconds for each in known.values() for seconds in each]
    left: list[float] = []
    for kind, elapsed, share, begun in running:
        whole = elapsed / (share - begun) if share is not None and share > begun else means.get(kind)
        if whole is not None:
            left.append(max(whole * (1 - begun) - elapsed, 0.0))
            means.setdefault(kind, whole)
            wholes.append(whole)
    if not wholes:
        return None
    # Kinds of which none has ended, attacks above all, are nearer to the many short runs than to the few long ones.
    usual = fmean(wholes)
    left += [usual] * (len(running) - len(left))
    work = sum(left) + sum(means.get(kind, usual) for kind in waiting)
    # Not faster than the longest one that is running.
    return max([work / max(at_a_time, 1), *left])


def known_seconds(results: Results, machine: Mapping[str, object]) -> dict[str, list[float]]:
    """Return the seconds of runs that this machine has finished, by kind."""
    known: dict[str, list[float]] = {}
    for record in list(results.runs.values()):
        if "seconds" in record and record.get("machine") == machine:
            kind = Kind(record["kind"])
            known.setdefault(_pooled(kind), []).append(record["seconds"])
    return known


def shares(job: Job, study: Path) -> tuple[float | None, float]:
    """Return the share of its steps that a running run has evaluated (None if unknown), and that where it was resumed."""
    run = job.folders(study)[0]
    try:
        manifest, records = run.read_manifest(), run.read_metrics()
    except (InputError, OSError):
        return None, 0.0
    if not records or manifest.get("status") == "finished":
        return None, 0.0
    last, resumed = records[-1], [0, *(manifest.get("resumed_at_steps") or [])][-1]
    for done, limit in (
        (last["step"], manifest.get("max_steps")),
        (last.get("epoch"), manifest.get("max_epochs")),
    ):
        if done and limit and limit > 0:
            share = float(min(done / limit, 1.0))
            return share, min(share * resumed / last["step"], share) if last["step"] else 0.0
    return None, 0.0


def _title(job: Job, share: float | None) -> str:
    return job.title if share is None else f"{job.title} ({share:.0%})"


def _kind(job: Job) -> str:
    return _pooled(job.kind)


def _pooled(kind: Kind) -> str:
    # A tuning run is one of a row, on another seed.
    return str(Kind.ROW if kind is Kind.TUNING else kind)
