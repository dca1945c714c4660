"""Descriptions of the metrics that reports show: title, meaning, and which of two values is better."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from dipo_pl.report.run import printable


class Better(Enum):
    """Which of two values is better, in the words of the report."""

    HIGHER = "higher is better"
    LOWER = "lower is better"
    NEAR_ZERO = "closest to 0 is best"
    NEAR_UNSEEN = "closest to the retain-only model is best; without one, closest to 0.5"
    NEAR_RETAIN_ONLY = "closest to the retain-only model is best"
    NEITHER = "neither direction is better"


@dataclass(frozen=True)
class Column:
    """Description of a metric.

    Attributes:
        key: name in metrics.jsonl.
        headline: True if the short table shows it.
        digits: decimal places.
    """

    key: str
    title: str
    meaning: str
    better: Better
    headline: bool = False
    digits: int = 3

    def text(self, value: float | None) -> str:
        """Return the value rounded for people; empty if nothing was measured."""
        if value is None:
            return ""
        if value and abs(value) < 0.5 * 10**-self.digits:
            return f"{value:.1e}"
        # Adding 0.0 turns -0.0 into 0.0.
        return f"{round(value, self.digits) + 0.0:.{self.digits}f}"

    def distance(self, value: float, retain_only: float | None) -> float:
        """Return the distance from the best possible value, up to a constant; NaN if that is unknown."""
        match self.better:
            case Better.HIGHER:
                return -value
            case Better.LOWER:
                return value
            case Better.NEAR_ZERO:
                return abs(value)
            case Better.NEAR_UNSEEN:
                return abs(value - (0.5 if retain_only is None else retain_only))
            case Better.NEAR_RETAIN_ONLY if retain_only is not None:
                return abs(value - retain_only)
        return math.nan


MEMBERSHIP_SCORES = {
    "loss": "Loss",
    "zlib": "Zlib",
    "min_k": "Min-K%",
    "min_k_plus_plus": "Min-K%++",
    "reference": "Reference",
    "gradient_norm": "Gradient norm",
}
AUC_SCALE = "1: recognized as training data; 0.5: same as unseen; below: forgotten more than unseen"

_FORGET_SETS = {
    "forget": "forget set",
    "verbatim": "passages of the forget set",
    "forget_questions": "questions about the forget set",
}
_RETAIN_SETS = {
    "retain": "retain set",
    "real_authors": "real authors",
    "world_facts": "world facts",
    "retain_questions": "questions about the retain set",
}
_OTHER_SETS = {
    "holdout": "holdout set (rows that no model has seen)",
    "relearned": "forget rows that a relearning attack trained on",
    "held_back": "forget rows that a relearning attack did not train on",
}
_REQUEST = re.compile(r"request_(\d+)_(questions_)?(\w+)")


class _Part(NamedTuple):
    """Metric of a set, with what is better on a forget set and on a retain set, and the sets where it is a headline."""

    title: str
    meaning: str
    on_forget: Better
    on_retain: Better
    headlines: tuple[str, ...] = ()


_LIKE_RETAIN_ONLY = (Better.NEAR_RETAIN_ONLY, Better.HIGHER)
_LOWER = (Better.LOWER, Better.LOWER)
_NEITHER = (Better.NEITHER, Better.NEITHER)
_BOTH = ("forget", "retain")
_PARTS = {
    "knowledge": _Part("KnowMem", "ROUGE-L F1 of generated answers to questions", *_LIKE_RETAIN_ONLY, _BOTH),
    "probability": _Part("P", "mean probability of the true answers, per token", *_LIKE_RETAIN_ONLY, _BOTH),
    "rouge_l_recall": _Part(
        "ROUGE", "ROUGE-L recall of the true answers by the generated ones", *_LIKE_RETAIN_ONLY, _BOTH
    ),
    "truth_ratio": _Part(
        "TR",
        "truth ratio R, as min(R, 1/R) on the forget set and max(0, 1 - R) elsewhere",
        *_LIKE_RETAIN_ONLY,
    ),
    "exact_memorization": _Part(
        "EM", "share of the true answers' tokens that are the most probable ones", *_LIKE_RETAIN_ONLY
    ),
    "extraction_strength": _Part(
        "ES",
        "share of the true answer that the model completes from the rest",
        *_LIKE_RETAIN_ONLY,
        ("forget",),
    ),
    "repetition": _Part("Repetition", "share of repeated n-grams in generations", *_LOWER, ("forget",)),
    "distinct_2": _Part("Distinct-2", "share of distinct bigrams in generations", *_NEITHER),
    "word_entropy": _Part("Entropy", "entropy of the words of generations", *_NEITHER),
    "refusals": _Part("Refusals", "share of generations that refuse to answer", *_NEITHER),
}


def column_of(key: str) -> Column:
    """Return the description of a metric; a metric without one, such as a user's own, keeps its name."""
    if known := _KNOWN.get(key):
        return known
    match = _REQUEST.fullmatch(key)
    if match and match[3] in _PARTS:
        part, text = _PARTS[match[3]], f"forget set of request {match[1]}"
        title = f"{part.title}(request {match[1]}{' questions' if match[2] else ''})"
        meaning = f"{'questions about the ' if match[2] else ''}{text}: {part.meaning}"
        return Column(key, title, meaning, part.on_forget)
    return Column(key, printable(key), "metric without a description", Better.NEITHER)


def columns_of(keys: Iterable[str]) -> list[Column]:
    """Return the descriptions of metrics in the order of reports, those without a description last."""
    return [column_of(key) for key in sorted(set(keys), key=_order)]


def _order(key: str) -> tuple[int, int, int, int, str]:
    if key in _KNOWN:
        return 0, list(_KNOWN).index(key), 0, 0, ""
    match = _REQUEST.fullmatch(key)
    if match and match[3] in _PARTS:
        return 1, int(match[1]), int(match[2] is not None), list(_PARTS).index(match[3]), ""
    return 2, 0, 0, 0, key


def _described() -> Iterable[Column]:
    yield Column(
        "forget_quality", "Forget Quality",
        "p-value of a Kolmogorov-Smirnov test between the truth ratios of the model and of the retain-only model",
        Better.HIGHER, headline=True,
    )  # fmt: skip
    yield Column(
        "forget_quality_log10_p", "log10 p", "logarithm of Forget Quality; remains informative when p underflows",
        Better.HIGHER, headline=True, digits=2,
    )  # fmt: skip
    yield Column(
        "forget_quality_ks_statistic", "KS",
        "Kolmogorov-Smirnov statistic, the largest gap between the two distributions of truth ratios",
        Better.LOWER, headline=True,
    )  # fmt: skip
    yield Column(
        "model_utility", "Model Utility",
        "harmonic mean of probability, ROUGE-L recall and truth ratio on the sets that are kept",
        Better.HIGHER, headline=True,
    )  # fmt: skip
    yield Column(
        "forget_verbatim", "VerbMem", "forget set: ROUGE-L F1 of generated continuations of its passages",
        Better.NEAR_RETAIN_ONLY, headline=True,
    )  # fmt: skip
    for name, text in (_FORGET_SETS | _RETAIN_SETS | _OTHER_SETS).items():
        for key, part in _PARTS.items():
            better = part.on_forget if name in _FORGET_SETS else part.on_retain
            yield Column(
                f"{name}_{key}",
                f"{part.title}({name.replace('_', ' ')})",
                f"{text}: {part.meaning}",
                Better.NEITHER if name in _OTHER_SETS else better,
                name in part.headlines,
            )
    for name, title in MEMBERSHIP_SCORES.items():
        yield Column(
            f"membership_{name}_auc", f"AUC {title}",
            f"membership inference attack, forget set against holdout set ({AUC_SCALE})",
            Better.NEAR_UNSEEN, headline=name == "min_k",
        )  # fmt: skip
    yield Column(
        "priv_leak", "PrivLeak",
        "Min-K% AUC relative to that of the retain-only model, in percent; negative: forgotten too little, positive: too "
        "much",
        Better.NEAR_ZERO, headline=True, digits=1,
    )  # fmt: skip


_KNOWN = {each.key: each for each in _described()}
