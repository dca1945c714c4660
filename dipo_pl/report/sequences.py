"""Sequences of requests: what each stage left of the model, and whether what was forgotten comes back."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dipo_pl.errors import InputError
from dipo_pl.report.columns import columns_of
from dipo_pl.report.runs import SUSTAINABILITY, Kind, Run
from dipo_pl.storage.run_folder import RunFolder

TITLE = "Requests one after another"
# By the first of these that all stages have.
_UTILITY = ("model_utility", "retain_knowledge", "retain_probability")
_OF_FORGET_SET = ("forget_knowledge", "forget_verbatim", "forget_quality")
# What of a request is shown, the best to have first.
_OF_REQUESTS = {
    "knowledge": "knowledge of it (ROUGE-L F1 of the answers to its questions)",
    "probability": "mean probability of its true answers, per token",
}


@dataclass(frozen=True)
class Stage:
    """A model of a sequence.

    Attributes:
        number: how many requests have been made; 0 is the model before the first one.
        request: name of the last of them; empty at 0.
        figures: as in metrics.jsonl.
        run: whose folder tells; at 0, of the first stage.
        retain_only: figures of the model that never saw what this stage was to forget, as far as its run is here.
    """

    number: int
    request: str
    figures: dict[str, float]
    run: Run
    retain_only: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestSequence:
    """Forget sets that were asked for one after another.

    Attributes:
        mode: `sustainability`, each stage from the model before, or `scalability`, each from the first one.
        requests: names of the forget sets in order.
        stages: those that are known, in order.
    """

    name: str
    mode: str
    requests: tuple[str, ...]
    stages: tuple[Stage, ...]

    @property
    def title(self) -> str:
        return f"{self.name} ({self.mode})"

    @property
    def request_figure(self) -> str | None:
        """What all requests are told by: knowledge, or probability where that was measured more often."""
        often = {
            part: sum(
                f"request_{place}_{part}" in stage.figures
                for stage in self.stages
                for place in range(1, stage.number + 1)
            )
            for part in _OF_REQUESTS
        }
        most = max(often, key=often.__getitem__)
        return most if often[most] else None

    @property
    def request_meaning(self) -> str:
        """Of the request figure, in words."""
        return _OF_REQUESTS.get(self.request_figure or "", "not measured")

    def matrix(self) -> dict[int, dict[int, float]]:
        """The figure of each request at each stage: {request, from 1 on: {stage, from 0 on: value}}.

        Those of stages before the request was made are there as far as they are known.
        """
        found: dict[int, dict[int, float]] = {}
        for place in range(1, len(self.requests) + 1):
            key = f"request_{place}_{self.request_figure}"
            known = {each.number: each.figures[key] for each in self.stages if key in each.figures}
            if known:
                found[place] = known
        return found


@dataclass(frozen=True)
class StageTable:
    """Of one sequence, a row a stage; cells are texts, empty where nothing was measured."""

    title: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def stage_folders(path: Path) -> list[Path]:
    """The run folders in the folder of a sequence, in order of stages; none where it is something else."""
    if RunFolder(path).manifest.exists() or not path.is_dir():
        return []
    stages = {each: re.fullmatch(r"stage-(\d+)", each.name) for each in path.iterdir() if each.is_dir()}
    return sorted((each for each in stages if stages[each]), key=lambda each: int(each.name[6:]))


def sequences_of(runs: Sequence[Run], utility_parts: frozenset[str]) -> tuple[RequestSequence, ...]:
    """The sequences that some of the runs are stages of; stages in one folder are of one sequence.

    Args:
        utility_parts: Model Utility made of anything else is left out.
    Raises:
        InputError: stages in one folder are not of one sequence.
    """
    folders: dict[Path, dict[int, Run]] = {}
    for run in runs:
        if run.place is not None:
            folders.setdefault(run.path.resolve().parent, {}).setdefault(run.place.stage, run)
    return tuple(
        _sequence([stages[number] for number in sorted(stages)], runs, utility_parts)
        for stages in folders.values()
    )


def _sequence(stages: Sequence[Run], runs: Sequence[Run], parts: frozenset[str]) -> RequestSequence:
    places = [each.place for each in stages if each.place is not None]
    last = places[-1]
    for run, place in zip(stages, places, strict=True):
        if place.mode != last.mode or place.requests != last.requests[: place.stage]:
            raise InputError(
                f"{run.path} and {stages[-1].path} are not stages of one sequence: the one is of {place.mode} with the "
                f"requests {', '.join(place.requests)}, the other of {last.mode} with {', '.join(last.requests)}; report "
                "them apart"
            )
    found = [
        Stage(place.stage, place.requests[-1], run.chosen.like(parts), run, _retain_only(run, runs, parts))
        for run, place in zip(stages, places, strict=True)
    ]
    # The evaluation before a run's first step is one of the model that it starts from.
    beginnings: dict[int, list[Run]] = defaultdict(list)
    for run, place in zip(stages, places, strict=True):
        if run.points[0].step == 0:
            beginnings[place.stage - 1 if place.mode == SUSTAINABILITY else 0].append(run)
    if beginnings[0]:
        first = beginnings[0][0]
        found.insert(0, Stage(0, "", first.points[0].like(parts), first))
    for stage in found:
        for run in beginnings[stage.number]:
            for key, value in run.points[0].metrics.items():
                if key.startswith("request_"):
                    stage.figures.setdefault(key, value)
    name = max((each.name.rpartition("/")[0] for each in stages), key=len)
    return RequestSequence(name, last.mode, last.requests, tuple(found))


def _retain_only(run: Run, runs: Sequence[Run], parts: frozenset[str]) -> dict[str, float]:
    named = run.retain_result
    found = (
        each.chosen.like(parts)
        for each in runs
        if each.kind is Kind.RETAIN_ONLY and named is not None and each.path.resolve() == named.resolve()
    )
    return next(found, {})


def utility_figure(sequences: Sequence[RequestSequence]) -> str | None:
    """What utility is told by: the first figure that all stages of all sequences have.

    The model before the first request may lack it. None where no figure is in all of them.
    """
    stages = [each for sequence in sequences for each in sequence.stages if each.number]
    return next((key for key in _UTILITY if stages and all(key in each.figures for each in stages)), None)


def stage_table(sequence: RequestSequence, utility: str | None) -> StageTable:
    """What was asked for at each stage, and what was measured then.

    Args:
        utility: the figure that utility is told by.
    """
    keys = [*([utility] if utility else []), *_OF_FORGET_SET]
    columns = [
        each
        for key in keys
        if any(key in stage.figures for stage in sequence.stages)
        for each in columns_of([key])
    ]
    matrix = sequence.matrix()
    (as_read,) = columns_of([f"request_1_{sequence.request_figure}"])
    return StageTable(
        sequence.title,
        f"Request 1, 2, ...: {sequence.request_meaning}, from before it was made where known; where it rises after its "
        "own stage, what was forgotten comes back."
        if matrix
        else "No figure of single requests was measured.",
        ("stage", "request", *(each.title for each in columns), *(f"request {place}" for place in matrix)),
        tuple(
            (
                str(stage.number),
                stage.request,
                *(each.text(stage.figures.get(each.key)) for each in columns),
                *(as_read.text(known.get(stage.number)) for known in matrix.values()),
            )
            for stage in sequence.stages
        ),
    )


def shortened(name: str, length: int = 24) -> str:
    """The end of a long name, which tells paths apart better than their beginning."""
    return name if len(name) <= length else f"...{name[3 - length :]}"


# What dipo-pl sequence says when it ends. The modules of formats read this one.


def as_text(folder: Path, width: int | None = None) -> str:
    """The table of a sequence, for a terminal.

    Args:
        folder: of the sequence, `runs/NAME`.
        width: in characters, beyond which the table goes on in further blocks of columns; None is the terminal's.
    Raises:
        InputError: no stage is finished, or one cannot be compared with the others.
    """
    from dipo_pl.report.contents import read_report
    from dipo_pl.report.text import sequence_lines, terminal_width

    report = read_report([folder])
    width = width or terminal_width()
    tables = [sequence_lines(each, report.utility_figure, width) for each in report.sequences]
    return "".join(f"{line}\n" for lines in tables for line in lines)


def write_picture(folder: Path, path: Path) -> None:
    """Draws the utility and the requests of a sequence, stage by stage, as one PNG.

    Raises:
        InputError: as for `as_text`, or nothing was measured that can be drawn.
        ImportError: matplotlib is not installed.
    """
    from dipo_pl.report.contents import read_report
    from dipo_pl.report.pictures import of_sequence, write_png

    report = read_report([folder])
    for sequence in report.sequences:
        write_png(of_sequence(sequence, report.utility_figure), path)
