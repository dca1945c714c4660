"""Values of rows keyed by their position, as files of other projects have them."""

import math
from collections.abc import Mapping
from typing import Any

from dipo_pl.errors import InputError
from dipo_pl.metrics.result import number_or_type


def in_order(values: Any, where: str) -> list[Any]:
    """Return the values in the order of the rows, from {"0": ..., "1": ...} or a list.

    Args:
        values: the values of a column.
        where: its name in an error.

    Raises:
        InputError: it is neither, or a row is missing.
    """
    if isinstance(values, list):
        return values
    if not isinstance(values, Mapping):
        raise InputError(
            f"{where} must have values by row (got {number_or_type(values)}): give the file as it was written"
        )
    missing = next((row for row in range(len(values)) if str(row) not in values), None)
    if missing is not None:
        raise InputError(
            f"{where} has {len(values)} rows and none of them is row {missing}: evaluate again, so that rows are "
            "numbered from 0 without a gap"
        )
    return [values[str(row)] for row in range(len(values))]


def same_rows(columns: Mapping[str, list[Any]], where: str) -> int:
    """Return the number of rows, which all columns must have.

    Raises:
        InputError: columns have different numbers of rows.
    """
    shortest, longest = (pick(columns, key=lambda name: len(columns[name])) for pick in (min, max))
    if len(columns[shortest]) < len(columns[longest]):
        raise InputError(
            f"{where}: {longest} has {len(columns[longest])} rows and {shortest} has no row {len(columns[shortest])}: "
            "evaluate again, both on the same rows"
        )
    return len(columns[longest])


def finite(value: Any, where: str) -> float:
    """Return the value as a number; raise InputError if it is no number, NaN or infinite."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    raise InputError(
        f"{where} must be a finite number (got {number_or_type(value)}): such a row has no answer tokens, or the model has "
        "diverged; evaluate again without such rows"
    )
