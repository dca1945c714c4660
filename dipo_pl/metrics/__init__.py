"""Metrics of unlearning: pure functions of per-example values, and the torchmetric that collects those."""

from dipo_pl.metrics.functional import (
    ForgetQuality,
    answer_probability,
    arithmetic_truth_ratio,
    forget_quality,
    log_truth_ratio,
    model_utility,
    option_probability,
    rouge_l_recall,
    truth_ratio,
    truth_ratio_closeness,
    truth_ratio_margin,
)
from dipo_pl.metrics.per_row import PerRow

__all__ = [
    "ForgetQuality",
    "PerRow",
    "answer_probability",
    "arithmetic_truth_ratio",
    "forget_quality",
    "log_truth_ratio",
    "model_utility",
    "option_probability",
    "rouge_l_recall",
    "truth_ratio",
    "truth_ratio_closeness",
    "truth_ratio_margin",
]
