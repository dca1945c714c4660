"""Metrics of unlearning: for each a file with pure functions of values of rows and the torchmetrics class over them."""

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dipo_pl.metrics.base import EvaluationMetric, MeasuredSet
    from dipo_pl.metrics.fluency import Fluency
    from dipo_pl.metrics.forget_quality import ForgetQuality
    from dipo_pl.metrics.knowledge import Knowledge
    from dipo_pl.metrics.membership import Membership
    from dipo_pl.metrics.memorization import Memorization
    from dipo_pl.metrics.model_utility import ModelUtility
    from dipo_pl.metrics.observations import Observations
    from dipo_pl.metrics.probability import Probability
    from dipo_pl.metrics.rouge import Rouge
    from dipo_pl.metrics.truth_ratio import TruthRatio
    from dipo_pl.metrics.verbatim import Verbatim

__all__ = [
    "EvaluationMetric",
    "Fluency",
    "ForgetQuality",
    "Knowledge",
    "MeasuredSet",
    "Membership",
    "Memorization",
    "ModelUtility",
    "Observations",
    "Probability",
    "Rouge",
    "TruthRatio",
    "Verbatim",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a metric at its first use: results of evaluations are read without torch."""
        if name not in __all__:
            raise AttributeError(f"module 'dipo_pl.metrics' has no attribute {name!r}")
        in_base = name in ("EvaluationMetric", "MeasuredSet")
        module = "base" if in_base else re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
        return getattr(import_module(f"dipo_pl.metrics.{module}"), name)
