"""Checks of which runs may be compared, and with which retain-only model."""

from collections.abc import Container, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from dipo_pl.errors import InputError
from dipo_pl.report.read import read_run
from dipo_pl.report.run import FORGET, Kind, Run


def refuse_incomparable(runs: Sequence[Run]) -> None:
    """Check that all runs follow one convention and measured the same rows.

    Stages of sequences forget different rows, so sets that depend on the requests may differ between them.

    Raises:
        InputError: two runs follow different conventions, or measured different rows under one name.
    """
    sequences = any(each.stage for each in runs)
    for one, other in combinations(runs, 2):
        if difference := _difference(one, other, _sets_of_requests(one, other) if sequences else ()):
            raise InputError(
                f"{one.name} and {other.name} are not comparable: {difference}; report them separately"
            )


def different_forget_sets(one: Run, other: Run) -> bool:
    """Return True if two runs are known to have different forget sets."""
    known = [each.result.sets[FORGET].fingerprint for each in (one, other) if FORGET in each.result.sets]
    return len(known) == 2 and None not in known and known[0] != known[1]


def with_kind(run: Run, runs: Sequence[Run], retain_only: Path | None) -> Run:
    """Return the run, as the retain-only model if `retain_only` or the config of another run names it."""
    named = [retain_only, *(each.retain_result for each in runs if each.kind is Kind.UNLEARNING)]
    if run.probe or run.kind is Kind.TARGET or not any(map(run.is_at, named)):
        return run
    return replace(run, kind=Kind.RETAIN_ONLY)


def retain_only_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """Return the retain-only run that its config names, else the first with the same forget set."""
    known = [each for each in runs if each.kind is Kind.RETAIN_ONLY]
    named = (each for each in known if each.is_at(run.retain_result))
    return next(named, next((each for each in known if not different_forget_sets(run, each)), None))


def attacked_run(probe: Run, runs: Sequence[Run]) -> Run | None:
    """Return the run that was relearned or quantized, if it is among `runs`."""
    of = probe.probe.get("of")
    return next((each for each in runs if not each.probe and of and each.is_at(of)), None)


def find_retain_only(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Return the retain-only runs that configs name, if none is given, and one line on each that is another model."""
    if any(each.kind is Kind.RETAIN_ONLY for each in runs):
        return [], []
    named = {each.retain_result.resolve(): each.retain_result for each in runs if each.retain_result}
    if any(each.path.resolve() in named for each in runs):
        return [], []
    found, others = [], []
    for path in named.values():
        try:
            reference = replace(read_run(path), kind=Kind.RETAIN_ONLY)
        except InputError:
            continue
        measured = [each for each in runs if reference.is_at(each.retain_result)]
        if wrong := [each.name for each in measured if _is_another_model(each, reference)]:
            others.append(f"{path} is not the model that {', '.join(wrong)} was measured against")
        else:
            found.append(reference)
    return found, others


def forget_quality_against(run: Run, reference: Run) -> dict[str, float]:
    """Return the metrics of Forget Quality; nothing if one of the two lacks truth ratios."""
    ratios, expected = run.scores("log_truth_ratio"), reference.scores("log_truth_ratio")
    if not ratios or not expected:
        return {}
    # Imports torch, and is seldom needed: runs measured with a retain-only result have Forget Quality.
    from dipo_pl.metrics.forget_quality import forget_quality

    return forget_quality(ratios, expected)._asdict()


def _is_another_model(run: Run, reference: Run) -> bool:
    """Return True if the Forget Quality of the run does not follow from this model; folders may have been replaced."""
    key = "forget_quality_ks_statistic"
    if key not in run.metrics or different_forget_sets(run, reference):
        return False
    computed = forget_quality_against(run, reference)
    return key in computed and abs(run.metrics[key] - computed[key]) > 1e-9


def _sets_of_requests(one: Run, other: Run) -> Container[str]:
    """Return names of sets that may differ, since the two runs had different requests before."""
    if one.stage == other.stage and one.kind.competes and other.kind.competes:
        return ()
    requests = [each.stage.requests if each.stage else () for each in (one, other)]
    same = {place for place, (a, b) in enumerate(zip(*requests, strict=False), start=1) if a == b}
    requested = {name for each in (one, other) for name in each.result.sets if name.startswith("request_")}
    compared = {f"request_{place}{part}" for place in same for part in ("", "_questions")}
    return {FORGET, "forget_questions", "verbatim", "retain", *(requested - compared)}


def _difference(one: Run, other: Run, may_differ: Container[str]) -> str | None:
    a, b = one.result, other.result
    if a.convention != b.convention:
        return f"{one.name} follows the convention {a.convention!r}, {other.name} {b.convention!r}"
    # The prompt of a set may hold examples, which depend on its rows.
    names = (each for each in b.settings if each.removesuffix(" prompt") not in may_differ)
    if setting := a.other_settings({name: b.settings[name] for name in names}):
        return f"they were measured with different settings ({setting}; there is {one.name})"
    for name, here in a.sets.items():
        there = b.sets.get(name)
        if there is None or name in may_differ:
            continue
        if len(here.rows) != len(there.rows):
            return f"the {name} set has {len(here.rows)} rows in {one.name} and {len(there.rows)} in {other.name}"
        if None not in (here.fingerprint, there.fingerprint) and here.fingerprint != there.fingerprint:
            return (
                f"their {name} rows differ (fingerprint {str(here.fingerprint)[:12]} in {one.name}, "
                f"{str(there.fingerprint)[:12]} in {other.name})"
            )
    return None
