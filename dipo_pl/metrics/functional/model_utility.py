"""One number for what a model still can, which no single strength can make up for."""

import math
from collections.abc import Mapping
from typing import SupportsFloat

from dipo_pl.metrics.functional._inputs import Numbers


def model_utility(values: Mapping[str, SupportsFloat] | Numbers) -> float:
    r"""M / sum_i (1 / v_i): the harmonic mean; any zero gives 0.

    Source: TOFU, arXiv:2401.06121, section 2.2, "Model Utility", over nine values: {`answer_probability`
    or `option_probability`, `rouge_l_recall`, `truth_ratio_margin`} x {retain, real authors, world
    facts}, each a mean over its set.

    Args:
        values: M >= 1 numbers >= 0, by name or in order.
    Raises: ValueError: empty, or a value is negative, NaN, infinite or no number.
    """
    named = values if isinstance(values, Mapping) else {f"values[{i}]": v for i, v in enumerate(values)}
    numbers = [_as_number(name, value) for name, value in named.items()]
    if not numbers:
        raise ValueError("model_utility needs at least one value, got none; TOFU takes nine")
    if min(numbers) == 0:
        return 0.0
    return len(numbers) / math.fsum(1 / number for number in numbers)


def _as_number(name: str, value: SupportsFloat) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be one number, got {value!r}; average it over its set") from error
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be a finite number >= 0, got {number:g}; check the set it averages")
    return number
