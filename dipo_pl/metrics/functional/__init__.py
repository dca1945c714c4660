"""Metrics as pure functions of per-example numbers: float64, in log space, without state or devices."""

from dipo_pl.metrics.functional.fluency import distinct_ngrams, refusals, repetition, word_entropy
from dipo_pl.metrics.functional.forget_quality import ForgetQuality, forget_quality
from dipo_pl.metrics.functional.membership import auroc, min_k, min_k_plus_plus, priv_leak, zlib
from dipo_pl.metrics.functional.memorization import exact_memorization, extraction_strength
from dipo_pl.metrics.functional.model_utility import model_utility
from dipo_pl.metrics.functional.probability import answer_probability, option_probability
from dipo_pl.metrics.functional.rouge import before_next_question, rouge_l_f1, rouge_l_recall
from dipo_pl.metrics.functional.truth_ratio import (
    arithmetic_truth_ratio,
    log_arithmetic_truth_ratio,
    log_truth_ratio,
    truth_ratio,
    truth_ratio_closeness,
    truth_ratio_margin,
)

__all__ = [
    "ForgetQuality",
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
