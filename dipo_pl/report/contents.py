"""The content of a report, before it is written in any format."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

from dipo_pl.errors import InputError
from dipo_pl.metrics.conventions import CONVENTIONS
from dipo_pl.report.audits import Audit, audit_of, audited_verdict, is_audit, left_open, read_audit
from dipo_pl.report.compare import (
    attacked_run,
    different_forget_sets,
    find_retain_only,
    forget_quality_against,
    refuse_incomparable,
    retain_only_of,
    with_kind,
)
from dipo_pl.report.leaks import Leaks, leaks_of
from dipo_pl.report.read import distinct_names, read_run
from dipo_pl.report.registers import Register, registers_of
from dipo_pl.report.results import Results, Row, make_results
from dipo_pl.report.run import Kind, Run, lookup, printable
from dipo_pl.report.seeds import SeedGroup, seed_groups
from dipo_pl.report.sequences import RequestSequence, find_sequences, stage_folders, utility_metric
from dipo_pl.report.texts import Texts, without_texts
from dipo_pl.report.verdicts import verdict_of
from dipo_pl.storage.run_folder import RunFolder, exported_weights

_REFERENCES = (Kind.TARGET, Kind.RETAIN_ONLY)


@dataclass(frozen=True)
class Report:
    """All that a report says.

    Attributes:
        runs: in the order of the table; a relearned or quantized model follows the one it was made from.
        sequences: sequences of requests that some of the runs are stages of.
        notes: remarks on single values.
        left_out: one line on each run that could not be read.
        created: time of the report, UTC.
        leaks: what each model that was to forget still gives away.
        texts: how much of the rows' texts it holds.
        audits: attacks on runs.
        registers: of sequences of requests.
    """

    runs: tuple[Run, ...]
    results: Results
    seeds: tuple[SeedGroup, ...]
    sequences: tuple[RequestSequence, ...]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    created: str
    leaks: tuple[Leaks, ...]
    texts: Texts
    audits: tuple[Audit, ...] = ()
    registers: tuple[Register, ...] = ()

    @property
    def convention(self) -> str:
        """Evaluation convention of all metrics, in words."""
        name = printable(self.runs[0].result.convention)
        known = CONVENTIONS.get(name)
        if known is None:
            return f"{name} (unknown to this version)"
        rows = "all rows" if known.rows is None else f"at most {known.rows} rows of a set"
        mean = "probabilities" if known.arithmetic_truth_ratio else "losses"
        epsilon = f", {known.epsilon:g} added to denominators" if known.epsilon else ""
        score = ", scored on the forget set by 1 / (1 + R)" if known.prob_mean else ""
        return f"{name}: {rows}, truth ratio of wrong answers to the true one by mean {mean}{epsilon}{score}"

    @property
    def utility_metric(self) -> str | None:
        """Metric of utility that all stages of all sequences have."""
        return utility_metric(self.sequences)

    def of_kind(self, kind: Kind) -> list[Run]:
        """Return the runs of one kind."""
        return [each for each in self.runs if each.kind is kind]


def read_report(
    paths: Sequence[Path],
    retain_only: Path | None = None,
    unfinished: bool = False,
    texts: Texts = Texts.REDACTED,
) -> Report:
    """Read runs, sequences of runs and evaluation files; those that cannot be read are left out and named.

    Args:
        paths: run folders, evaluation files, and folders of sequences, which stand for their stages.
        retain_only: run of the model that never saw the forget set, if configs do not tell.
        unfinished: accept runs that are in progress or have failed.
        texts: how much of the rows' texts the report is to hold.

    Raises:
        InputError: nothing can be read, or two runs are not comparable.
    """
    runs = [] if retain_only is None else [read_run(retain_only, unfinished)]
    left_out = []
    known = {each.path.resolve() for each in runs}
    given = paths
    stages = [stage for path in paths for stage in stage_folders(path) or [path]]
    # The audits of stages lie beside these.
    beside = (each.with_name(f"{each.name}-audit") for each in stages if each not in given)
    paths = [*stages, *filter(is_audit, beside)]
    audits = []
    for path in {each.resolve(): each for each in paths if each.resolve() not in known}.values():
        try:
            if is_audit(path):
                audits.append(read_audit(RunFolder(path)))
            else:
                runs.append(read_run(path, unfinished))
        except InputError as error:
            left_out.append(str(error))
    if audits and not runs and not left_out:
        raise InputError("nothing to report beside audits: give the audited runs as well")
    if not runs:
        others = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        raise InputError(f"nothing to report: {left_out[0]}{others}")
    runs = distinct_names(runs)
    runs = [with_kind(each, runs, retain_only) for each in runs]
    refuse_incomparable(runs)
    references, others_there = find_retain_only(runs)
    runs = _in_order(distinct_names([*runs, *references]))
    refuse_incomparable(runs)
    leaks = [leaks_of(each, retain_only_of(each, runs), texts) for each in runs if each.kind.competes]
    if texts is not Texts.FULL:
        runs = without_texts(runs)
    usual = next((each.chosen.utility_parts for each in runs if each.chosen.utility_parts), frozenset())
    rows = _rows(runs, usual, audits)
    competing = [each for each in runs if each.kind.competes]
    one_task = not any(different_forget_sets(one, other) for one, other in combinations(competing, 2))
    sequences = find_sequences(runs, usual)
    notes = [f"{row.name}: {note}" for row in rows for note in row.notes]
    return Report(
        runs=tuple(runs),
        results=make_results(rows, one_task),
        seeds=tuple(seed_groups(runs)),
        sequences=sequences,
        notes=(
            *_notes_on_references(runs),
            *_notes_on_sequences(sequences),
            *notes,
            *(f"{audit.name}: {line}" for audit in audits for line in left_open(audit)),
        ),
        left_out=(*left_out, *others_there),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        leaks=tuple(each for each in leaks if each is not None),
        texts=texts,
        audits=tuple(audits),
        registers=tuple(registers_of(given)),
    )


def _in_order(runs: Sequence[Run]) -> list[Run]:
    order = {kind: place for place, kind in enumerate(_REFERENCES)}
    plain = [each for each in runs if not each.probe]
    plain.sort(key=lambda run: order.get(run.kind, len(order)))
    probes = sorted(
        (each for each in runs if each.probe), key=lambda each: (each.kind, -each.bits, each.rounding)
    )
    ordered = []
    for run in plain:
        ordered += [run, *(each for each in probes if attacked_run(each, plain) is run)]
    return ordered + [each for each in probes if each not in ordered]


def _rows(runs: Sequence[Run], usual: frozenset[str], audits: Sequence[Audit]) -> list[Row]:
    rows = [_row(run, retain_only_of(run, runs), usual, audit_of(run, audits)) for run in runs]
    place = sum(run.kind in _REFERENCES for run in runs)
    return [*rows[:place], *_rows_before(runs, usual), *rows[place:]]


def _row(run: Run, reference: Run | None, usual: frozenset[str], audit: Audit | None) -> Row:
    metrics, notes = run.chosen.comparable(usual), []
    if run.manifest and run.manifest.get("status") != "finished":
        notes.append(f"not finished (status: {run.manifest.get('status')})")
    if "model_utility" in run.metrics and "model_utility" not in metrics:
        notes.append(
            f"Model Utility is left out: it is the mean of {', '.join(sorted(run.chosen.utility_parts))}, and of "
            f"{', '.join(sorted(usual))} in the first run"
        )
    # Rows without wrong answers have no truth ratios, so no Forget Quality.
    if run.scores("log_truth_ratio") or "forget_quality" in metrics:
        if run.kind is Kind.RETAIN_ONLY:
            notes.append(
                f"its own Forget Quality was measured against {run.retain_result}"
                if run.retain_result and "forget_quality" in metrics
                else "no Forget Quality of its own: the others are compared with it"
            )
        elif "forget_quality" not in metrics:
            if reference is None:
                notes.append("no Forget Quality: it was measured without forget_quality.retain_result")
            elif computed := forget_quality_against(run, reference):
                metrics |= computed
                notes.append(f"its Forget Quality was computed for this report, against {reference.name}")
    verdict = verdict_of(run, reference)
    if verdict is not None and audit is not None:
        verdict = audited_verdict(verdict, audit)
    return Row(run.name, run.kind, metrics, run, tuple(notes), verdict)


def _rows_before(runs: Sequence[Run], usual: frozenset[str]) -> list[Row]:
    """Return a row for each model before unlearning, unless its own run is given."""
    targets = {exported_weights(each.manifest) for each in runs if each.kind is Kind.TARGET}
    stages = {(each.path.resolve().parent, each.stage.number) for each in runs if each.stage}
    first: dict[str, Run] = {}
    for run in runs:
        # The stage before ended with the model that this one starts from, or started from the same.
        follows = run.stage is not None and (run.path.resolve().parent, run.stage.number - 1) in stages
        if run.kind is Kind.UNLEARNING and run.first is not None and not follows:
            first.setdefault(str(lookup(run.manifest, "policy", "weights_at_start") or run.name), run)
    found = [run for weights, run in first.items() if weights not in targets]
    names = [Kind.BEFORE] if len(found) == 1 else [f"before {run.name}" for run in found]
    metrics = (run.evaluations[0].comparable(usual) for run in found)
    return [Row(*each) for each in zip(names, [Kind.BEFORE] * len(found), metrics, found, strict=True)]


def _notes_on_references(runs: Sequence[Run]) -> list[str]:
    plain = [each for each in runs if each.kind is Kind.UNLEARNING and each.stage is None]
    against = {str(each.retain_result): each.name for each in plain if each.retain_result is not None}
    if len(against) < 2:
        return []
    named = "; ".join(f"{name} against {path}" for path, name in against.items())
    return [f"Forget Quality was measured against different retain-only results: {named}"]


def _notes_on_sequences(sequences: Sequence[RequestSequence]) -> list[str]:
    notes = []
    for sequence in sequences:
        sets = (each.run.result.sets for each in sequence.stages)
        if len({each["retain"].fingerprint for each in sets if "retain" in each}) > 1:
            notes.append(
                f"{sequence.name}: retain rows differ between stages, since requested rows are removed from them"
            )
    return notes
