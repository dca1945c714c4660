"""VerbMem: whether a model continues the texts that it should have forgotten."""

from collections.abc import Mapping
from statistics import fmean

from torch import Tensor

from dipo_pl.metrics.base import EvaluationMetric, MeasuredSet
from dipo_pl.metrics.observations import Observations
from dipo_pl.metrics.result import EvaluationResult, SetResult
from dipo_pl.metrics.rouge import rouge_l_f1

VERBATIM = "verbatim"


class Verbatim(EvaluationMetric):
    """Metric `forget_verbatim`, MUSE's VerbMem: the mean `rouge_l_f1` of generated continuations of the set `verbatim`.

    A continuation is compared with as many tokens of the text as it may have, or with all of it, and words as they
    are or by their stems: see `Convention.whole_references` and `Convention.stemmed_f1`.

    Source: MUSE, arXiv:2407.06460, "VerbMem".
    """

    inputs = ("generation",)

    def applies(self, measured: MeasuredSet) -> bool:
        """Return True for the set `verbatim`."""
        return super().applies(measured) and measured.name == VERBATIM

    def per_row(self, seen: Observations) -> dict[str, Tensor]:
        """Return `rouge_l_f1`."""
        convention = self.measured.convention
        cut = None if convention.whole_references else self.measured.evaluation_set.cut_answers
        references = self.measured.references if cut is None else cut
        return {"rouge_l_f1": rouge_l_f1(seen.generation, references, convention.stemmed_f1)}

    def of_set(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return nothing: the mean has a name of its own."""
        return {}

    def across(self, sets: Mapping[str, SetResult], retain: EvaluationResult | None) -> dict[str, float]:
        """Return `forget_verbatim`."""
        found = sets[VERBATIM].values("rouge_l_f1") if VERBATIM in sets else None
        return {} if found is None else {"forget_verbatim": fmean(found)}
