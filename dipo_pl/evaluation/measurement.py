"""From what was observed of a model to the figures of an evaluation."""

from collections.abc import Sequence

from dipo_pl.errors import TrainingError
from dipo_pl.evaluation.result import EvaluationResult, SetResult
from dipo_pl.measures import Answered, Measure, Probability, Rouge, TruthRatio
from dipo_pl.metrics.functional import model_utility
from dipo_pl.storage.fingerprints import rows_fingerprint

UTILITY_PARTS = ("probability", "rouge_l_recall", "truth_ratio")


def measured(
    answered: Sequence[Answered],
    measures: Sequence[Measure],
    utility_sets: Sequence[str],
    retain: EvaluationResult | None = None,
) -> EvaluationResult:
    """The benchmark's own figures and those of further measures.

    Args:
        answered: at least one set, all of one convention.
        utility_sets: names of the sets whose parts enter Model Utility; it is reported where there are generations.
        retain: a retain-only model's result on the same forget rows.
    """
    every = [Probability(), TruthRatio(), Rouge(), *measures]
    sets = {each.name: _of_set(each, every) for each in answered}
    figures = {
        f"{name}_{figure}": value for name, found in sets.items() for figure, value in found.metrics.items()
    }
    for measure in every:
        figures |= measure.across(sets, retain)
    parts = {
        f"{name}_{part}": sets[name].metrics[part]
        for name in utility_sets
        for part in UTILITY_PARTS
        if part in sets[name].metrics
    }
    if parts and all("rouge_l_recall" in sets[name].metrics for name in utility_sets):
        figures["model_utility"] = model_utility(parts)
    return EvaluationResult(answered[0].convention.name, figures, sets, utility_sets=list(utility_sets))


def _of_set(answered: Answered, measures: Sequence[Measure]) -> SetResult:
    figures: dict[str, float] = {}
    columns: dict[str, list[float]] = {}
    for measure in measures:
        values = measure.rows(answered)
        for name, each in values.items():
            if each.shape != (len(answered.observations),) or not each.isfinite().all():
                raise TrainingError(
                    f"{type(measure).__name__} must give a finite number {name} for each of the "
                    f"{len(answered.observations)} rows of {answered.name}, and gives {each.tolist()[:5]} of shape "
                    f"{list(each.shape)}"
                )
        figures |= measure.figures(answered, values)
        columns |= {name: each.tolist() for name, each in values.items()}
    texts = answered.generations
    rows = [
        {
            "row": index,
            "question": row.question,
            "answers": row.measured_answers,
            "nll": list(answered.nll[index]),
            **({} if texts is None else {"generation": texts[index]}),
            **{name: column[index] for name, column in columns.items()},
        }
        for index, row in enumerate(answered.evaluation_set.rows)
    ]
    return SetResult(figures, rows, rows_fingerprint(answered.evaluation_set.rows))
