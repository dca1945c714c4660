"""The questions as they are: what a model says of its own accord, and what it still can do."""

from typing import Any

import torch

from dipo_pl.attacks.base import Attack, Outcome, by_model, numbered
from dipo_pl.attacks.intervals import of_rows
from dipo_pl.attacks.measuring import measure
from dipo_pl.attacks.subject import CALLED, Subject
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.metrics import Fluency, Memorization, ModelUtility, Probability, Rouge, TruthRatio
from dipo_pl.metrics.audit_scores import memorization_score
from dipo_pl.metrics.base import FORGET
from dipo_pl.metrics.probability import answer_probability
from dipo_pl.metrics.result import SetResult
from dipo_pl.metrics.truth_ratio import truth_ratio_knowledge

ROW_VALUES = ("probability", "rouge_l_recall", "exact_memorization", "extraction_strength", "log_truth_ratio")


class PlainQuestion(Attack):
    r"""Attack that asks each question as it is; the score of memorization, and utility, come from it.

    Metrics are those of an evaluation (`forget_probability`, `forget_rouge_l_recall`, `forget_exact_memorization`,
    `forget_extraction_strength`), for rows with wrong answers `paraphrased_probability`, `truth_ratio_knowledge` and
    `memorization_score`, and of the sets that utility averages over `model_utility` and `fluency`: the mean share of
    their answers' 4-grams that repeat no earlier one, which is not the classifier of OpenUnlearning.

    Args:
        tolerance: see `Attack`; of the mean probability.
    """

    def run(self, subject: Subject) -> Outcome:
        """Return the metrics of each model."""
        found = subject.each_model(self.name, lambda name: self._measured(subject, name))
        values = {name: each["metrics"]["forget_probability"] for name, each in found.items()}
        rows = numbered({name: each["rows"] for name, each in found.items()})
        metrics = by_model({name: each["metrics"] for name, each in found.items()})
        by_row = {name: [row["probability"] for row in each["rows"]] for name, each in found.items()}
        headline = "mean probability of the true answer"
        return Outcome(headline, values, metrics, rows, intervals=of_rows(by_row))

    def _measured(self, subject: Subject, name: str) -> dict[str, Any]:
        kept = [found for each in subject.utility_sets if (found := subject.set_of(each)) is not None]
        sets: dict[str, SetResult] = {}
        with subject.model(name) as model:
            for each in (subject.forget, *kept):
                metrics = [Probability(), TruthRatio(), Rouge(), Memorization(), Fluency()]
                what = f"{each.name} questions to the {CALLED[name]}, batches"
                sets[each.name] = measure(subject, model, each, metrics, _length(subject, each), what)
        measured = sets[FORGET].metrics
        values = {f"{FORGET}_{key}": measured[key] for key in ROW_VALUES if key in measured}
        values |= _memorization(sets[FORGET])
        if kept:
            values |= ModelUtility([each.name for each in kept]).across(sets, None)
        repetitions = [sets[each.name].metrics.get("repetition") for each in kept]
        known = [each for each in repetitions if each is not None]
        if kept and len(known) == len(kept):
            values["fluency"] = 1 - sum(known) / len(known)
        rows = [{key: row[key] for key in ROW_VALUES if key in row} for row in sets[FORGET].rows]
        return {"metrics": values, "rows": rows}


def _length(subject: Subject, evaluation_set: EvaluationSet) -> int:
    own = evaluation_set.new_tokens
    return subject.max_new_tokens if own is None else own


def _memorization(forget: SetResult) -> dict[str, float]:
    """Return the parts of the score of memorization that an evaluation does not have, and the score."""
    ratios = forget.values("log_truth_ratio")
    if ratios is None:
        return {}
    parts = {
        # The truth ratio's correct answer stands after the original.
        "paraphrased_probability": float(
            answer_probability(torch.tensor([row["nll"][1] for row in forget.rows])).mean()
        ),
        "truth_ratio_knowledge": float(truth_ratio_knowledge(ratios).mean()),
    }
    score = memorization_score(
        forget.metrics["extraction_strength"],
        forget.metrics["exact_memorization"],
        min(1.0, parts["paraphrased_probability"]),
        parts["truth_ratio_knowledge"],
    )
    return parts | {"memorization_score": score}
