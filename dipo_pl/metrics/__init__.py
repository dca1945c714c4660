"""Metrics of unlearning: pure functions of per-example values, and the torchmetrics that collect those."""

from dipo_pl.metrics.forgetting import ForgetQualityTest
from dipo_pl.metrics.functional import (
    ForgetQuality,
    answer_probability,
    arithmetic_truth_ratio,
    auroc,
    before_next_question,
    distinct_ngrams,
    exact_memorization,
    extraction_strength,
    forget_quality,
    log_arithmetic_truth_ratio,
    log_truth_ratio,
    min_k,
    min_k_plus_plus,
    model_utility,
    option_probability,
    priv_leak,
    refusals,
    repetition,
    rouge_l_f1,
    rouge_l_recall,
    truth_ratio,
    truth_ratio_closeness,
    truth_ratio_margin,
    word_entropy,
    zlib,
)
from dipo_pl.metrics.membership import MembershipAUC
from dipo_pl.metrics.memorization import ExactMemorization, ExtractionStrength
from dipo_pl.metrics.per_row import PerRow
from dipo_pl.metrics.probability import AnswerProbability, OptionProbability
from dipo_pl.metrics.rouge import RougeLF1, RougeLRecall
from dipo_pl.metrics.truthfulness import TruthRatio
from dipo_pl.metrics.utility import ModelUtility

__all__ = [
    "AnswerProbability",
    "ExactMemorization",
    "ExtractionStrength",
    "ForgetQuality",
    "ForgetQualityTest",
    "MembershipAUC",
    "ModelUtility",
    "OptionProbability",
    "PerRow",
    "RougeLF1",
    "RougeLRecall",
    "TruthRatio",
    "answer_probability",
    "arithmetic_truth_ratio",
    "auroc",
    "before_next_question",
    "distinct_ngrams",
    "exact_memorization",
    "extraction_strength",
    "forget_quality",
    "log_arithmetic_truth_ratio",
    "log_truth_ratio",
    "min_k",
    "min_k_plus_plus",
    "model_utility",
    "option_probability",
    "priv_leak",
    "refusals",
    "repetition",
    "rouge_l_f1",
    "rouge_l_recall",
    "truth_ratio",
    "truth_ratio_closeness",
    "truth_ratio_margin",
    "word_entropy",
    "zlib",
]
