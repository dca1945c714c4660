"""Generated answers of all models, row by row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dipo_pl.metrics.result import EvaluationResult
from dipo_pl.report.runs import FORGET, Kind, Run


@dataclass(frozen=True)
class Answered:
    """A question, its true answer, and each model's own.

    Attributes:
        answers: (model, text) in the order of the report.
    """

    set_name: str
    row: int
    question: str
    truth: str
    answers: tuple[tuple[str, str], ...]


def side_by_side(runs: Sequence[Run]) -> list[Answered]:
    """All rows that some model generated an answer to, the forget set first."""
    models = list(_models(runs))
    names = {name: None for _, result in models for name in result.sets}
    found = []
    for name in sorted(names, key=lambda each: each != FORGET):
        measured = [(model, result.sets[name]) for model, result in models if name in result.sets]
        # Stages of a sequence hold different rows under one name; results without texts are of the first ones.
        texts = list(dict.fromkeys(each.fingerprint for _, each in measured if each.fingerprint))
        rows: dict[tuple[int, int], dict[str, Any]] = {}
        answers: dict[tuple[int, int], list[tuple[str, str]]] = {}
        for model, each in measured:
            of = texts.index(each.fingerprint) if each.fingerprint else 0
            for number, row in enumerate(each.rows):
                index = of, number
                if row.get("generation") is not None:
                    # Results of other projects have no texts; the first one that has them tells the question.
                    if index not in rows or not rows[index].get("question"):
                        rows[index] = row
                    answers.setdefault(index, []).append((model, str(row["generation"])))
        for index in sorted(rows):
            row = rows[index]
            truth = str((row.get("answers") or [""])[0])
            found.append(
                Answered(name, index[1], str(row.get("question") or ""), truth, tuple(answers[index]))
            )
    return found


def _models(runs: Sequence[Run]) -> list[tuple[str, EvaluationResult]]:
    """The models that answer: as they were before unlearning, each under one name, and as they are."""
    before: dict[str, tuple[list[str], EvaluationResult]] = {}
    for run in runs:
        if run.kind is Kind.UNLEARNED and run.first is not None and run.first is not run.generated:
            texts = repr([[row.get("generation") for row in each.rows] for each in run.first.sets.values()])
            before.setdefault(texts, ([], run.first))[0].append(run.name)
    models = [
        (
            "before unlearning" if len(before) == 1 else f"before {', '.join(names)}",
            result,
        )
        for names, result in before.values()
    ]
    for run in runs:
        if run.generated is not None and not (run.kind is Kind.TARGET and before):
            step = "" if run.generated is run.result else f" (step {run.generated.step})"
            models.append((f"{run.name}{step}", run.generated))
    return models
