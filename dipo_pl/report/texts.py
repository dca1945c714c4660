"""How much of the rows' texts a report shows: it may be passed on, and its rows were to be forgotten."""

from dataclasses import replace
from enum import StrEnum
from typing import Any

from dipo_pl.metrics.result import EvaluationResult, SetResult
from dipo_pl.report.run import Run

MASK = "\N{BLACK RECTANGLE}\N{BLACK RECTANGLE}"


class Texts(StrEnum):
    """How much of questions, true answers and generated answers is shown."""

    NONE = "none"
    REDACTED = "redacted"
    FULL = "full"

    @property
    def left_out(self) -> str:
        """What a report leaves out, and how to get it; empty if nothing."""
        if self is Texts.FULL:
            return ""
        kept = "each word is a mask" if self is Texts.REDACTED else "rows have their numbers alone"
        return (
            f"Questions, true answers and generated answers are left out ({kept}), so that this report can be passed on: "
            "--texts full shows them"
        )


def without_texts(runs: list[Run]) -> list[Run]:
    """Return the runs with nothing but numbers in their rows, so that no format can hold a text of a row."""
    known: dict[int, EvaluationResult] = {}

    def cleared(result: EvaluationResult | None) -> EvaluationResult | None:
        # A run's results may be one object, which tells that they are of one step.
        return None if result is None else known.setdefault(id(result), _without_texts(result))

    found = []
    for run in runs:
        result = cleared(run.result)
        assert result is not None
        made = replace(run, result=result, first=cleared(run.first), generated=cleared(run.generated))
        # The error of a failed run may show a value of a row.
        status = str(run.manifest.get("status") or "").partition(":")[0]
        found.append(replace(made, manifest=run.manifest | {"status": status}) if run.manifest else made)
    return found


def _without_texts(result: EvaluationResult) -> EvaluationResult:
    sets = {
        name: SetResult(
            each.metrics, [{key: row[key] for key in row if _is_numeric(row[key])} for row in each.rows],
            each.fingerprint,
        )
        for name, each in result.sets.items()
    }  # fmt: skip
    return replace(result, sets=sets)


def _is_numeric(value: Any) -> bool:
    return all(map(_is_numeric, value)) if isinstance(value, list) else isinstance(value, int | float)
