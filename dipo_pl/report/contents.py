"""What a report says, before it is written in any format."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

from dipo_pl.errors import InputError
from dipo_pl.metrics.conventions import CONVENTIONS
from dipo_pl.report.comparable import refuse_incomparable
from dipo_pl.report.runs import (
    FORGET,
    Kind,
    Run,
    of_other_rows,
    read_run,
    scores,
    with_different_names,
)
from dipo_pl.report.seeds import SeedGroup, seed_groups
from dipo_pl.report.sequences import RequestSequence, sequences_of, stage_folders, utility_figure
from dipo_pl.report.table import Row, Table, make_table

_ORDER = (Kind.TARGET, Kind.RETAIN_ONLY)


@dataclass(frozen=True)
class Report:
    """All that is known of some runs.

    Attributes:
        runs: in the order of the table; a probe follows the run that it probes.
        sequences: of requests, whose stages are among the runs.
        left_out: what could not be read, one line each.
        notes: what a reader must know about single figures.
        made: when, UTC.
    """

    runs: tuple[Run, ...]
    table: Table
    seeds: tuple[SeedGroup, ...]
    sequences: tuple[RequestSequence, ...]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    made: str

    @property
    def convention(self) -> str:
        """The convention that all figures follow, in words."""
        name = self.runs[0].result.convention
        known = CONVENTIONS.get(name)
        if known is None:
            return f"{name} (not a convention of this version)"
        return f"{name}: " + ", ".join(
            [
                "all rows" if known.rows is None else f"at most {known.rows} rows of a set",
                "truth ratio by mean of "
                + ("probabilities" if known.arithmetic_truth_ratio else "losses, false to true"),
                *([f"{known.epsilon:g} added to denominators"] if known.epsilon else []),
            ]
        )

    def probes(self, kind: Kind) -> list[Run]:
        return [each for each in self.runs if each.kind is kind]

    def retain_only_of(self, run: Run) -> Run | None:
        """The retain-only run to compare with: the one its config names, else the first that measured the same rows."""
        return _retain_only_of(run, self.runs)

    @property
    def utility_figure(self) -> str | None:
        """What the utility of the stages of all sequences is told by."""
        return utility_figure(self.sequences)

    def probed_by(self, probe: Run) -> Run | None:
        return _probed(probe, self.runs)


def read_report(paths: Sequence[Path], retain_only: Path | None = None, unfinished: bool = False) -> Report:
    """Reads runs, sequences of them and evaluation files; those that cannot be read are named and left out.

    Args:
        paths: the folder of a sequence stands for its stages.
        retain_only: which of them (or another one) is of a model that never saw the forget set, where
            that cannot be told from a config.
        unfinished: take also runs that are still going on or have failed.
    Raises:
        InputError: nothing can be read, or two of them are not comparable.
    """
    runs = [] if retain_only is None else [read_run(retain_only, unfinished)]
    left_out = []
    known = {each.path.resolve() for each in runs}
    paths = [stage for path in paths for stage in stage_folders(path) or [path]]
    for path in {each.resolve(): each for each in paths if each.resolve() not in known}.values():
        try:
            runs.append(read_run(path, unfinished))
        except InputError as error:
            left_out.append(str(error))
    if not runs:
        others = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        raise InputError(f"nothing to report: {left_out[0]}{others}")
    runs = with_different_names(runs)
    refuse_incomparable([_with_kind(each, runs, retain_only) for each in runs])
    references, strangers = _retain_only_runs(runs)
    left_out += strangers
    runs = with_different_names([*runs, *references])
    runs = _in_order([_with_kind(each, runs, retain_only) for each in runs])
    refuse_incomparable(runs)
    usual = next((each.chosen.utility_parts for each in runs if each.chosen.utility_parts), frozenset())
    rows = _rows(runs, usual)
    competing = [each for each in runs if each.kind.competes]
    sequences = sequences_of(runs, usual)
    return Report(
        tuple(runs),
        make_table(rows, not any(of_other_rows(one, other) for one, other in combinations(competing, 2))),
        tuple(seed_groups(runs)),
        sequences,
        (
            *_notes_on_all(runs),
            *_notes_on(sequences),
            *(f"{row.name}: {note}" for row in rows for note in row.notes),
        ),
        tuple(left_out),
        datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _retain_only_runs(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """What the runs were measured against, as far as it can still be read, where no retain-only model was given.

    Also what is left out, since it lies where a config names it and is another model.
    """
    if any(each.kind is Kind.RETAIN_ONLY for each in runs):
        return [], []
    given = {each.path.resolve() for each in runs}
    named = {each.retain_result.resolve(): each.retain_result for each in runs if each.retain_result}
    found, others = [], []
    for resolved, path in named.items():
        if resolved in given:
            return [], []
        try:
            reference = replace(read_run(path), kind=Kind.RETAIN_ONLY)
        except InputError:
            continue
        strangers = [
            each.name for each in runs if _same(path, each.retain_result) and _is_other(each, reference)
        ]
        if strangers:
            others.append(f"{path} is not the model that {', '.join(strangers)} was measured against")
        else:
            found.append(reference)
    return found, others


def _is_other(run: Run, reference: Run) -> bool:
    """Whether the run's Forget Quality cannot be one against this model. (A config may name another folder's runs.)"""
    recorded, computed = run.metrics.get("forget_quality_ks_statistic"), _forget_quality(run, reference)
    if recorded is None or computed is None or of_other_rows(run, reference):
        return False
    return abs(recorded - computed["forget_quality_ks_statistic"]) > 1e-9


def _with_kind(run: Run, runs: Sequence[Run], retain_only: Path | None) -> Run:
    if run.probe or run.kind is Kind.TARGET:
        return run
    named = [each.retain_result for each in runs if each.kind is Kind.UNLEARNED]
    if any(_same(run.path, each) for each in [retain_only, *named]):
        return replace(run, kind=Kind.RETAIN_ONLY)
    return run


def _in_order(runs: Sequence[Run]) -> list[Run]:
    probes = [each for each in runs if each.probe]
    plain = [each for each in runs if not each.probe]
    plain.sort(key=lambda run: _ORDER.index(run.kind) if run.kind in _ORDER else len(_ORDER))
    ordered = []
    for run in plain:
        of_run = [each for each in probes if _probed(each, plain) is run]
        ordered += [run, *sorted(of_run, key=lambda each: (each.kind, -int(each.probe.get("bits", 0))))]
    return ordered + [each for each in probes if each not in ordered]


def _probed(probe: Run, runs: Sequence[Run]) -> Run | None:
    of = probe.probe.get("of")
    return next((each for each in runs if not each.probe and of and _same(each.path, Path(of))), None)


def _same(path: Path, other: Path | None) -> bool:
    return other is not None and path.resolve() == other.resolve()


def _retain_only_of(run: Run, runs: Sequence[Run]) -> Run | None:
    known = [each for each in runs if each.kind is Kind.RETAIN_ONLY]
    named = (each for each in known if _same(each.path, run.retain_result))
    return next(named, next((each for each in known if not of_other_rows(run, each)), None))


def _rows(runs: Sequence[Run], usual: frozenset[str]) -> list[Row]:
    rows = [_row(run, _retain_only_of(run, runs), usual) for run in runs]
    place = sum(run.kind in _ORDER for run in runs)
    return [*rows[:place], *_before(runs, usual), *rows[place:]]


def _row(run: Run, reference: Run | None, usual: frozenset[str]) -> Row:
    values, notes = dict(run.metrics), []
    if run.manifest and run.manifest.get("status") != "finished":
        notes.append(f"not finished (status: {run.manifest.get('status')})")
    parts = run.chosen.utility_parts
    if parts and parts != usual and values.pop("model_utility", None) is not None:
        notes.append(
            f"Model Utility is left out, since it is made of {', '.join(sorted(parts))} here and of "
            f"{', '.join(sorted(usual))} in the first run"
        )
    if scores(run.result.sets.get(FORGET), "log_truth_ratio") is None and "forget_quality" not in values:
        # Data without wrong answers has none.
        return Row(run.name, run.kind, values, run, tuple(notes))
    if run.kind is Kind.RETAIN_ONLY:
        against = run.retain_result
        notes.append(
            f"its own Forget Quality is that against {against}"
            if against and "forget_quality" in values
            else "it has no Forget Quality of its own: it is what the others are compared with (with itself p is 1)"
        )
    elif "forget_quality" not in values and reference is not None:
        if computed := _forget_quality(run, reference):
            values |= computed
            notes.append(f"its Forget Quality was computed for this report, against {reference.name}")
    elif "forget_quality" not in values:
        notes.append("no Forget Quality, since it was measured without forget_quality.retain_result")
    return Row(run.name, run.kind, values, run, tuple(notes))


def _forget_quality(run: Run, reference: Run) -> dict[str, float] | None:
    ratios = [scores(each.result.sets.get(FORGET), "log_truth_ratio") for each in (run, reference)]
    if ratios[0] is None or ratios[1] is None:
        return None
    from dipo_pl.metrics.forget_quality import forget_quality

    return forget_quality(ratios[0], ratios[1])._asdict()


def _before(runs: Sequence[Run], usual: frozenset[str]) -> list[Row]:
    """Each model that was unlearned, as it was, unless its own run is here."""
    ends = {_weights(each, "weights_at_end") for each in runs if each.kind is Kind.TARGET}
    first: dict[str, Run] = {}
    for run in runs:
        if run.kind is Kind.UNLEARNED and run.first is not None and not _follows_one_of(run, runs):
            first.setdefault(_weights(run, "weights_at_start") or run.name, run)
    found = [run for weights, run in first.items() if weights not in ends]
    return [
        Row(
            "before unlearning" if len(found) == 1 else f"before {run.name}",
            Kind.BEFORE,
            run.points[0].like(usual),
            run,
        )
        for run in found
    ]


def _follows_one_of(run: Run, runs: Sequence[Run]) -> bool:
    """Whether the stage before is here, which left the model that it starts from, or started from the same."""
    return run.place is not None and any(
        other.place is not None
        and other.place.stage == run.place.stage - 1
        and other.path.resolve().parent == run.path.resolve().parent
        for other in runs
    )


def _weights(run: Run, when: str) -> str | None:
    policy = run.manifest.get("policy")
    fingerprint = policy.get(when) if isinstance(policy, dict) else None
    return fingerprint if isinstance(fingerprint, str) else None


def _notes_on_all(runs: Sequence[Run]) -> list[str]:
    against = {
        str(run.retain_result): run.name
        for run in runs
        if run.kind is Kind.UNLEARNED and run.place is None and run.retain_result is not None
    }
    if len(against) < 2:
        return []
    named = "; ".join(f"{name} against {path}" for path, name in against.items())
    return [f"Forget Quality was measured against different retain-only results: {named}"]


def _notes_on(sequences: Sequence[RequestSequence]) -> list[str]:
    return [
        f"{sequence.name}: its stages measured different retain rows, since what is asked for is taken out of them"
        for sequence in sequences
        if len(
            {
                each.run.result.sets["retain"].fingerprint
                for each in sequence.stages
                if "retain" in each.run.result.sets
            }
        )
        > 1
    ]
