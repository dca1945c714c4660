"""Whether a model tells true answers from wrong ones; Forget Quality and Model Utility are made of it."""

from collections.abc import Mapping

from torch import Tensor

from dipo_pl.evaluation.result import EvaluationResult, SetResult
from dipo_pl.measures.base import FORGET, Answered, Measure
from dipo_pl.metrics.functional import (
    forget_quality,
    log_arithmetic_truth_ratio,
    log_truth_ratio,
    truth_ratio_closeness,
    truth_ratio_margin,
)


class TruthRatio(Measure):
    """`log_truth_ratio` of a row, `truth_ratio` of a set, and with a retain-only model's result `forget_quality`."""

    def rows(self, answered: Answered) -> dict[str, Tensor]:
        if not answered.has_wrong_answers:
            return {}
        correct, wrong = [nll[1] for nll in answered.nll], [nll[2:] for nll in answered.nll]
        if answered.convention.arithmetic_truth_ratio:
            return {"log_truth_ratio": log_arithmetic_truth_ratio(correct, wrong)}
        return {"log_truth_ratio": log_truth_ratio(correct, wrong, epsilon=answered.convention.epsilon)}

    def figures(self, answered: Answered, values: Mapping[str, Tensor]) -> dict[str, float]:
        if not values:
            return {}
        aggregate = truth_ratio_closeness if answered.name == FORGET else truth_ratio_margin
        return {"truth_ratio": float(aggregate(values["log_truth_ratio"].exp()).mean())}

    def across(self, sets: Mapping[str, SetResult], retain: EvaluationResult | None) -> dict[str, float]:
        both = [sets.get(FORGET), None if retain is None else retain.sets.get(FORGET)]
        ratios = [
            found.values("log_truth_ratio")
            for found in both
            if found is not None and found.rows and all("log_truth_ratio" in row for row in found.rows)
        ]
        return forget_quality(*ratios).figures() if len(ratios) == 2 else {}
