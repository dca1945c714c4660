"""Continual unlearning: sequences of requests, read from the runs of their stages."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dipo_pl.errors import InputError
from dipo_pl.report.columns import column_of
from dipo_pl.report.run import SUSTAINABILITY, Kind, Run
from dipo_pl.report.table import Table
from dipo_pl.storage.run_folder import RunFolder

TITLE = "Continual unlearning"
# Utility is the first of these that all stages have.
_UTILITY = ("model_utility", "retain_knowledge", "retain_probability")
_FORGET_METRICS = ("forget_knowledge", "forget_verbatim", "forget_quality")
# Metric of a single request: the one that is known at more stages.
_REQUEST_METRICS = {
    "knowledge": "ROUGE-L F1 of the answers to its questions",
    "probability": "mean probability of its true answers, per token",
}


@dataclass(frozen=True)
class Stage:
    """A model of a sequence.

    Attributes:
        number: requests processed so far; 0 is the model before the first.
        request: name of the last of them; empty at 0.
        metrics: by name, as in metrics.jsonl.
        run: the run they are from; at 0 the run of the first stage.
        retain_only: metrics of the model that never saw the forget set of this stage, if its run is given.
    """

    number: int
    request: str
    metrics: dict[str, float]
    run: Run
    retain_only: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestSequence:
    """Requests that were processed one after another.

    Attributes:
        mode: one of `MODES`.
        requests: names of the forget sets, in order.
        stages: those that were found, in order.
    """

    name: str
    mode: str
    requests: tuple[str, ...]
    stages: tuple[Stage, ...]

    @property
    def title(self) -> str:
        """Name and mode."""
        return f"{self.name} ({self.mode})"

    @property
    def request_metric(self) -> str | None:
        """Metric that is shown of single requests: knowledge, or probability if that is known at more stages."""
        made = [(each, place) for each in self.stages for place in range(1, each.number + 1)]
        counts = {
            part: sum(f"request_{place}_{part}" in stage.metrics for stage, place in made)
            for part in _REQUEST_METRICS
        }
        most = max(counts, key=counts.__getitem__)
        return most if counts[most] else None

    @property
    def request_meaning(self) -> str:
        """Meaning of the metric of single requests."""
        return _REQUEST_METRICS.get(self.request_metric or "", "not measured")

    def by_request(self) -> dict[int, dict[int, float]]:
        """Return the metric of each request at each stage, {request from 1: {stage from 0: value}}.

        Values at stages before the request are included where they are known.
        """
        found = {}
        for place in range(1, len(self.requests) + 1):
            key = f"request_{place}_{self.request_metric}"
            if known := {each.number: each.metrics[key] for each in self.stages if key in each.metrics}:
                found[place] = known
        return found


def stage_folders(path: Path) -> list[Path]:
    """Return the run folders in the folder of a sequence, in order; nothing for any other path."""
    if RunFolder(path).manifest.exists() or not path.is_dir():
        return []
    stages = {each: re.fullmatch(r"stage-(\d+)", each.name) for each in path.iterdir() if each.is_dir()}
    return sorted((each for each in stages if stages[each]), key=lambda each: int(each.name[6:]))


def find_sequences(runs: Sequence[Run], utility_parts: frozenset[str]) -> tuple[RequestSequence, ...]:
    """Return the sequences that the runs contain stages of; stages in one folder belong to one sequence.

    Args:
        runs: all runs of a report.
        utility_parts: parts of Model Utility; a Model Utility of other parts is left out.

    Raises:
        InputError: stages in one folder contradict each other.
    """
    folders: dict[Path, dict[int, Run]] = defaultdict(dict)
    for run in runs:
        if run.stage is not None:
            folders[run.path.resolve().parent].setdefault(run.stage.number, run)
    return tuple(
        _sequence([stages[number] for number in sorted(stages)], runs, utility_parts)
        for stages in folders.values()
    )


def utility_metric(sequences: Sequence[RequestSequence]) -> str | None:
    """Return the first metric of utility that all stages of all sequences have, except the model before them."""
    stages = [each for sequence in sequences for each in sequence.stages if each.number]
    return next((key for key in _UTILITY if stages and all(key in each.metrics for each in stages)), None)


def _sequence(stages: Sequence[Run], runs: Sequence[Run], parts: frozenset[str]) -> RequestSequence:
    entries = [each.stage for each in stages if each.stage is not None]
    last = entries[-1]
    found = []
    # The evaluation before the first training step is one of the model that the stage starts from.
    beginnings: dict[int, list[Run]] = defaultdict(list)
    for run, entry in zip(stages, entries, strict=True):
        if entry.mode != last.mode or entry.requests != last.requests[: entry.number]:
            raise InputError(
                f"{run.path} and {stages[-1].path} are not stages of one sequence: {entry.mode} with the requests "
                f"{', '.join(entry.requests)}, and {last.mode} with {', '.join(last.requests)}; report them separately"
            )
        reference = (each for each in runs if each.kind is Kind.RETAIN_ONLY and each.is_at(run.retain_result))
        retain_only = next((each.chosen.comparable(parts) for each in reference), {})
        found.append(Stage(entry.number, entry.requests[-1], run.chosen.comparable(parts), run, retain_only))
        if run.evaluations[0].step == 0:
            beginnings[entry.number - 1 if entry.mode == SUSTAINABILITY else 0].append(run)
    if beginnings[0]:
        first = beginnings[0][0]
        found.insert(0, Stage(0, "", first.evaluations[0].comparable(parts), first))
    for stage in found:
        for run in beginnings[stage.number]:
            for key, value in run.evaluations[0].metrics.items():
                if key.startswith("request_"):
                    stage.metrics.setdefault(key, value)
    name = max((each.name.rpartition("/")[0] for each in stages), key=len)
    return RequestSequence(name, last.mode, last.requests, tuple(found))


def stage_table(sequence: RequestSequence, utility: str | None) -> Table:
    """Return the request and the metrics of each stage, of which `utility` is the key of the metric of utility."""
    known = set().union(*(each.metrics for each in sequence.stages))
    columns = [column_of(key) for key in (utility, *_FORGET_METRICS) if key in known]
    requests = sequence.by_request()
    caption = "No metric of single requests was measured."
    if requests:
        caption = (
            f"Request 1, 2, ...: {sequence.request_meaning}, before the request too where known. A value that rises after "
            "the stage of its request means that forgotten rows come back."
        )
    of_request = column_of(f"request_1_{sequence.request_metric}")
    rows = []
    for stage in sequence.stages:
        cells = [each.text(stage.metrics.get(each.key)) for each in columns]
        cells += [of_request.text(values.get(stage.number)) for values in requests.values()]
        rows.append([str(stage.number), stage.request, *cells])
    head = ["stage", "request", *(each.title for each in columns), *(f"request {each}" for each in requests)]
    return Table(f"{TITLE}: {sequence.title}", caption, head, rows, labels=2)
