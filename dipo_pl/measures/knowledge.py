"""Whether a model answers questions about texts that it has, or should no longer have, in mind."""

from collections.abc import Mapping
from statistics import fmean

from torch import Tensor

from dipo_pl.evaluation.result import EvaluationResult, SetResult
from dipo_pl.measures.base import Answered, Measure
from dipo_pl.metrics.functional import before_next_question, rouge_l_f1

QUESTIONS = "_questions"


class Knowledge(Measure):
    """`rouge_l_f1` of generated answers to each set NAME_questions; `NAME_knowledge`, MUSE's KnowMem, is their mean.

    An answer is taken `before_next_question`. `retain_knowledge` is MUSE's utility.

    Source: MUSE, arXiv:2407.06460, "KnowMem".
    """

    def rows(self, answered: Answered) -> dict[str, Tensor]:
        texts = answered.generations
        if not answered.name.endswith(QUESTIONS) or texts is None:
            return {}
        references = [row.answer for row in answered.evaluation_set.rows]
        answers = [before_next_question(each) for each in texts]
        return {"rouge_l_f1": rouge_l_f1(answers, references, answered.convention.stemmed_f1)}

    def figures(self, answered: Answered, values: Mapping[str, Tensor]) -> dict[str, float]:
        return {}

    def across(self, sets: Mapping[str, SetResult], retain: EvaluationResult | None) -> dict[str, float]:
        return {
            f"{name.removesuffix(QUESTIONS)}_knowledge": fmean(found.values("rouge_l_f1"))
            for name, found in sets.items()
            if name.endswith(QUESTIONS) and "rouge_l_f1" in found.rows[0]
        }
