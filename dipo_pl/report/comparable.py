"""Figures that do not mean the same are not set side by side."""

from collections.abc import Sequence
from itertools import combinations

from dipo_pl.errors import InputError
from dipo_pl.report.runs import Run


def refuse_incomparable(runs: Sequence[Run]) -> None:
    """Sees to it that all runs follow one convention and measured the same rows.

    Raises:
        InputError: two runs follow different conventions, or a set of both has other rows in each.
    """
    for one, other in combinations(runs, 2):
        if difference := _difference(one, other):
            raise InputError(
                f"{one.name} and {other.name} are not comparable: {difference}; report them apart"
            )


def _difference(one: Run, other: Run) -> str | None:
    if one.result.convention != other.result.convention:
        return f"{one.name} follows the convention {one.result.convention!r}, {other.name} {other.result.convention!r}"
    if setting := one.result.other_settings(other.result.settings):
        return f"they were measured with another setting ({setting}; there is {one.name})"
    for name, here in one.result.sets.items():
        there = other.result.sets.get(name)
        if there is None:
            continue
        if len(here.rows) != len(there.rows):
            return f"the {name} set has {len(here.rows)} rows in {one.name} and {len(there.rows)} in {other.name}"
        if None not in (here.fingerprint, there.fingerprint) and here.fingerprint != there.fingerprint:
            return (
                f"their {name} rows differ (fingerprint {str(here.fingerprint)[:12]} in {one.name}, "
                f"{str(there.fingerprint)[:12]} in {other.name})"
            )
    return None
