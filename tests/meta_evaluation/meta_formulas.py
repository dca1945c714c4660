"""Which metrics can be believed: faithfulness and robustness, as OpenUnlearning defines them.

Source: arXiv:2506.12618, section on meta-evaluation. A metric m is higher the more a model knows.
"""

from collections.abc import Sequence
from statistics import harmonic_mean

import numpy as np

from dipo_pl.attacks.intervals import area_draws
from dipo_pl.metrics.membership import auroc


def faithfulness(knowing: Sequence[float], ignorant: Sequence[float]) -> float:
    """Return the area under the curve: how often a model that knows has the higher value; ties count half."""
    return auroc(ignorant, knowing)


def faithfulness_interval(knowing: Sequence[float], ignorant: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the area over the models of both kinds."""
    low, high = np.quantile(area_draws(ignorant, knowing), [0.025, 0.975])
    return float(low), float(high)


def relearning_robustness(before: float, after: float, retain_before: float, retain_after: float) -> float:
    """Return R = min((retain_after - retain_before) / (after - before), 1), at least 0.

    1 if the unlearned model gains no more by relearning than the model that never knew; near 0 if much comes back that the
    metric did not see before.
    """
    gained, by_learning = after - before, retain_after - retain_before
    return 1.0 if gained <= max(by_learning, 0.0) else max(by_learning, 0.0) / gained


def quantization_robustness(before: float, after: float) -> float:
    """Return Q = min(before / after, 1): 1 if rounding the weights brings nothing back."""
    return 1.0 if after <= before else max(before, 0.0) / after


def robustness(relearning: float, quantization: float) -> float:
    """Return the harmonic mean of both."""
    return float(harmonic_mean([relearning, quantization]))
