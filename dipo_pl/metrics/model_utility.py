"""Model Utility: one value for what a model still can do, in which no strength makes up for a weakness."""

import math
from collections.abc import Mapping, Sequence
from statistics import harmonic_mean
from typing import SupportsFloat

from dipo_pl.metrics.base import EvaluationMetric
from dipo_pl.metrics.inputs import Numbers
from dipo_pl.metrics.result import EvaluationResult, SetResult

UTILITY_PARTS = ("probability", "rouge_l_recall", "truth_ratio")


def model_utility(values: Mapping[str, SupportsFloat] | Numbers) -> float:
    r"""Return M / sum_i (1 / v_i), the harmonic mean; any zero gives 0.

    Source: TOFU, arXiv:2401.06121, section 2.2, "Model Utility", over nine values: {`answer_probability` or
    `option_probability`, `rouge_l_recall`, `truth_ratio_margin`} x {retain, real authors, world facts}, each a mean
    over its set.

    Args:
        values: M >= 1 numbers >= 0, by name or in order.

    Raises:
        ValueError: there are no values, or one is negative, NaN, infinite or no number.
    """
    named = values if isinstance(values, Mapping) else {f"values[{i}]": v for i, v in enumerate(values)}
    if not named:
        raise ValueError("model_utility needs at least one value (got none): TOFU takes nine")
    return float(harmonic_mean([_as_number(name, value) for name, value in named.items()]))


class ModelUtility(EvaluationMetric):
    """Metric `model_utility` over probability, ROUGE-L recall and truth ratio of some sets.

    It is absent if answers are not generated, and of sets without wrong answers there is no truth ratio to average.

    Args:
        utility_sets: names of the sets.
    """

    def __init__(self, utility_sets: Sequence[str]) -> None:
        super().__init__()
        self.utility_sets = utility_sets

    def across(self, sets: Mapping[str, SetResult], retain: EvaluationResult | None) -> dict[str, float]:
        """Return `model_utility`."""
        found = {name: sets[name].metrics for name in self.utility_sets}
        if not found or any("rouge_l_recall" not in each for each in found.values()):
            return {}
        parts = {
            f"{name}_{part}": each[part]
            for name, each in found.items()
            for part in UTILITY_PARTS
            if part in each
        }
        return {"model_utility": model_utility(parts)}


def _as_number(name: str, value: SupportsFloat) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be one number (got {value!r}): average it over its set") from error
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(
            f"{name} must be a finite number >= 0 (got {number:g}): check the set that it averages"
        )
    return number
