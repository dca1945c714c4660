"""Generated answers of all models, row by row."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dipo_pl.metrics.result import EvaluationResult
from dipo_pl.report.run import FORGET, Kind, Run


@dataclass
class GeneratedRow:
    """A question with its true answer and the answer of each model.

    Attributes:
        row: place in the evaluation set.
        answers: (model, text) in the order of the report.
    """

    set_name: str
    row: int
    question: str
    truth: str
    answers: list[tuple[str, str]] = field(default_factory=list)


def generated_rows(runs: Sequence[Run]) -> list[GeneratedRow]:
    """Return all rows that a model answered, the forget set first."""
    models = _models(runs)
    names = dict.fromkeys(name for _, result in models for name in result.sets)
    found: list[GeneratedRow] = []
    for name in sorted(names, key=lambda each: each != FORGET):
        measured = [(model, result.sets[name]) for model, result in models if name in result.sets]
        # Stages of a sequence have different rows under one name. Results without texts belong to the first of them.
        versions = list(dict.fromkeys(each.fingerprint for _, each in measured if each.fingerprint))
        rows: dict[tuple[int, int], GeneratedRow] = {}
        for model, each in measured:
            version = versions.index(each.fingerprint) if each.fingerprint else 0
            for number, row in enumerate(each.rows):
                if row.get("generation") is None:
                    continue
                known = rows.setdefault((version, number), GeneratedRow(name, number, "", ""))
                known.question = known.question or str(row.get("question") or "")
                known.truth = known.truth or str((row.get("answers") or [""])[0])
                known.answers.append((model, str(row["generation"])))
        found += [rows[place] for place in sorted(rows)]
    return found


def _models(runs: Sequence[Run]) -> list[tuple[str, EvaluationResult]]:
    """Return the models before unlearning, equal ones once, and the models of all runs."""
    before: dict[str, tuple[list[str], EvaluationResult]] = {}
    for run in runs:
        if run.kind is Kind.UNLEARNING and run.first is not None and run.first is not run.generated:
            texts = repr([[row.get("generation") for row in each.rows] for each in run.first.sets.values()])
            before.setdefault(texts, ([], run.first))[0].append(run.name)
    models = [(f"before {', '.join(names)}", result) for names, result in before.values()]
    if len(models) == 1:
        models = [(str(Kind.BEFORE), models[0][1])]
    for run in runs:
        if run.generated is not None and not (run.kind is Kind.TARGET and before):
            step = "" if run.generated is run.result else f" (step {run.generated.step})"
            models.append((f"{run.name}{step}", run.generated))
    return models
