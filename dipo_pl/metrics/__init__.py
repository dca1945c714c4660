"""Metrics of unlearning: for each a file with pure functions of values of rows and the torchmetrics class over them."""

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
