"""Whether a model goes on with the texts that it should have forgotten."""

from collections.abc import Mapping
from statistics import fmean

from torch import Tensor

from dipo_pl.evaluation.result import EvaluationResult, SetResult
from dipo_pl.measures.base import Answered, Measure
from dipo_pl.metrics.functional import rouge_l_f1

VERBATIM = "verbatim"


class Verbatim(Measure):
    """`rouge_l_f1` of generated continuations of the set `verbatim`; `forget_verbatim`, MUSE's VerbMem, is their mean.

    The text is compared as far as the generation's length in tokens reaches, or whole, and words as they are or by
    their stems: see `Convention.whole_references` and `stemmed_f1`.

    Source: MUSE, arXiv:2407.06460, "VerbMem".
    """

    def rows(self, answered: Answered) -> dict[str, Tensor]:
        texts = answered.generations
        if answered.name != VERBATIM or texts is None:
            return {}
        cut = None if answered.convention.whole_references else answered.evaluation_set.cut_answers
        references = [row.answer for row in answered.evaluation_set.rows] if cut is None else cut
        return {"rouge_l_f1": rouge_l_f1(texts, references, answered.convention.stemmed_f1)}

    def figures(self, answered: Answered, values: Mapping[str, Tensor]) -> dict[str, float]:
        return {}

    def across(self, sets: Mapping[str, SetResult], retain: EvaluationResult | None) -> dict[str, float]:
        found = sets.get(VERBATIM)
        if found is None or "rouge_l_f1" not in found.rows[0]:
            return {}
        return {"forget_verbatim": fmean(found.values("rouge_l_f1"))}
