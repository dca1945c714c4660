"""KnowMem: whether a model answers questions about texts."""

import re
from collections.abc import Mapping
from statistics import fmean

from torch import Tensor

from dipo_pl.metrics.base import EvaluationMetric, MeasuredSet
from dipo_pl.metrics.observations import Observations
from dipo_pl.metrics.result import EvaluationResult, SetResult
from dipo_pl.metrics.rouge import rouge_l_f1

QUESTIONS = "_questions"

_NEXT_QUESTION = re.compile(r"\n\n|\nQuestion|Question:")


def before_next_question(text: str) -> str:
    r"""Return a generated answer up to the first "\n\n", "\nQuestion" or "Question:", where a few-shot model goes on.

    Nothing is stripped: a text that starts with one of them leaves an empty answer.

    Source: MUSE, https://github.com/jaechan-repo/muse_bench, `knowmem/get_rouge_qa.py`.
    """
    return _NEXT_QUESTION.split(text, maxsplit=1)[0]


class Knowledge(EvaluationMetric):
    """Metric `NAME_knowledge`, MUSE's KnowMem: the mean `rouge_l_f1` of generated answers to the set NAME_questions.

    An answer is compared up to `before_next_question`. `retain_knowledge` is MUSE's utility.

    Source: MUSE, arXiv:2407.06460, "KnowMem".
    """

    inputs = ("generation",)

    def applies(self, measured: MeasuredSet) -> bool:
        """Return True for sets of questions."""
        return super().applies(measured) and measured.name.endswith(QUESTIONS)

    def per_row(self, seen: Observations) -> dict[str, Tensor]:
        """Return `rouge_l_f1`."""
        answers = [before_next_question(each) for each in seen.generation]
        stemmer = self.measured.convention.stemmed_f1
        return {"rouge_l_f1": rouge_l_f1(answers, self.measured.references, stemmer)}

    def of_set(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return nothing: the mean has a name of its own."""
        return {}

    def across(self, sets: Mapping[str, SetResult], retain: EvaluationResult | None) -> dict[str, float]:
        """Return `NAME_knowledge` of each set NAME_questions."""
        found = {name: each.values("rouge_l_f1") for name, each in sets.items() if name.endswith(QUESTIONS)}
        return {
            f"{name.removesuffix(QUESTIONS)}_knowledge": fmean(values)
            for name, values in found.items()
            if values is not None
        }
