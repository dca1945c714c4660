"""The rows that an audit got most out of, with their texts, for the eyes of those who may see them."""

from collections.abc import Mapping, Sequence
from typing import Any

from dipo_pl.attacks.base import Outcome
from dipo_pl.attacks.subject import UNLEARNED
from dipo_pl.rows import Row

# Rows of each attack.
SHOWN = 3


def worst_rows(outcomes: Mapping[str, Outcome], rows: Sequence[Row]) -> list[str]:
    """Return lines on the rows that each attack got most out of the unlearned model, with question and answer.

    They are printed and stand in no file of the audit.
    """
    lines = []
    for name, outcome in outcomes.items():
        values = {each["row"]: value for each in outcome.rows if (value := _value(each)) is not None}
        for row in sorted(values, key=lambda each: -values[each])[:SHOWN]:
            text = " / ".join(
                " ".join(each.split()) for each in (rows[row].question, rows[row].answer) if each
            )
            lines.append(f"{name}, row {row} ({values[row]:.3g}): {text}")
    return lines


def _value(row: Mapping[str, Any]) -> float | None:
    """Return the value of the unlearned model, where an attack has one for a row."""
    value = row.get(UNLEARNED)
    if isinstance(value, Mapping):
        value = value.get("probability")
    return float(value) if isinstance(value, int | float) else None
