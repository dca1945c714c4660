"""Figures that do not mean the same are not set side by side."""

from collections.abc import Container, Sequence
from itertools import combinations

from dipo_pl.errors import InputError
from dipo_pl.report.runs import Run


def refuse_incomparable(runs: Sequence[Run]) -> None:
    """Sees to it that all runs follow one convention and measured the same rows.

    Stages of sequences are to forget different things, so there what follows the requests may differ.

    Raises:
        InputError: two runs follow different conventions, or a set of both has other rows in each.
    """
    sequences = any(each.place for each in runs)
    for one, other in combinations(runs, 2):
        if difference := _difference(one, other, _follow_requests(one, other) if sequences else ()):
            raise InputError(
                f"{one.name} and {other.name} are not comparable: {difference}; report them apart"
            )


def _follow_requests(one: Run, other: Run) -> Container[str]:
    """The sets that may hold other rows in each, since other requests came before."""
    if one.place == other.place and one.kind.competes and other.kind.competes:
        return ()
    asked = [each.place.requests if each.place else () for each in (one, other)]
    same = {place for place, (a, b) in enumerate(zip(*asked, strict=False), start=1) if a == b}
    requested = {name for each in (one, other) for name in each.result.sets if name.startswith("request_")}
    compared = {f"request_{place}{part}" for place in same for part in ("", "_questions")}
    return {"forget", "forget_questions", "verbatim", "retain", *(requested - compared)}


def _difference(one: Run, other: Run, follow_requests: Container[str]) -> str | None:
    if one.result.convention != other.result.convention:
        return f"{one.name} follows the convention {one.result.convention!r}, {other.name} {other.result.convention!r}"
    # A set's own prompt may hold examples, which follow its rows.
    shared = {
        name: value
        for name, value in other.result.settings.items()
        if name.removesuffix(" prompt") not in follow_requests
    }
    if setting := one.result.other_settings(shared):
        return f"they were measured with another setting ({setting}; there is {one.name})"
    for name, here in one.result.sets.items():
        there = other.result.sets.get(name)
        if there is None or name in follow_requests:
            continue
        if len(here.rows) != len(there.rows):
            return f"the {name} set has {len(here.rows)} rows in {one.name} and {len(there.rows)} in {other.name}"
        if None not in (here.fingerprint, there.fingerprint) and here.fingerprint != there.fingerprint:
            return (
                f"their {name} rows differ (fingerprint {str(here.fingerprint)[:12]} in {one.name}, "
                f"{str(there.fingerprint)[:12]} in {other.name})"
            )
    return None
