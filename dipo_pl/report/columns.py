"""The figures that reports show: what each is called, what it means, and which of two is better."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Better(Enum):
    """Which of two values is the better one, as said beside a column."""

    HIGHER = "higher is better"
    LOWER = "lower is better"
    NEAR_ZERO = "nearest to 0 is best"
    NEAR_UNSEEN = "nearest to the retain-only model, or without one to 0.5, is best"
    NEAR_RETAIN_ONLY = "nearest to the retain-only model is best"
    NEITHER = "neither is better as such"


@dataclass(frozen=True)
class Column:
    """A figure.

    Attributes:
        key: its name in metrics.jsonl.
        headline: whether it is in the short table.
        digits: behind the point.
    """

    key: str
    title: str
    meaning: str
    better: Better
    headline: bool = False
    digits: int = 3

    def text(self, value: float | None) -> str:
        """As people read it; empty where nothing was measured."""
        if value is None:
            return ""
        if value and abs(value) < 0.5 * 10**-self.digits:
            return f"{value:.1e}"
        # Not "-0.000".
        return f"{round(value, self.digits) + 0.0:.{self.digits}f}"

    def distance(self, value: float, retain_only: float | None) -> float:
        """How far from the best that can be; NaN where that is not known."""
        match self.better:
            case Better.HIGHER:
                return -value
            case Better.LOWER:
                return value
            case Better.NEITHER:
                return math.nan
            case Better.NEAR_ZERO:
                ideal: float | None = 0.0
            case Better.NEAR_RETAIN_ONLY:
                ideal = retain_only
            case Better.NEAR_UNSEEN:
                ideal = 0.5 if retain_only is None else retain_only
        return math.nan if ideal is None else abs(value - ideal)


SET_NAMES = {
    "forget": "what is to be forgotten",
    "retain": "what is to be kept",
    "real_authors": "real authors",
    "world_facts": "world facts",
    "holdout": "what no model has seen",
    "verbatim": "passages of what is to be forgotten",
    "forget_questions": "questions about what is to be forgotten",
    "retain_questions": "questions about what is to be kept",
}

# On these a model should come near one that never saw the forget set.
_FORGOTTEN = ("forget", "verbatim", "forget_questions")

# A set, or a figure, of one of several requests.
_REQUEST = re.compile(r"request_(\d+)_")
_KNOWLEDGE = "answers to questions (KnowMem, ROUGE-L F1)"

# (name, title, meaning, better on the forget set, better on sets that are kept, headline on these sets)
_OF_SETS = [
    (
        "probability", "P", "mean probability of the true answers, per token",
        Better.NEAR_RETAIN_ONLY, Better.HIGHER, ("forget", "retain"),
    ),
    (
        "rouge_l_recall", "ROUGE", "recall of the true answers by the generated ones (ROUGE-L)",
        Better.NEAR_RETAIN_ONLY, Better.HIGHER, ("forget", "retain"),
    ),
    (
        "truth_ratio", "TR", "truth ratio: on the forget set min(R, 1/R), elsewhere max(0, 1 - R)",
        Better.NEAR_RETAIN_ONLY, Better.HIGHER, (),
    ),
    (
        "exact_memorization", "EM", "share of the true answers' tokens that are the likeliest",
        Better.NEAR_RETAIN_ONLY, Better.HIGHER, (),
    ),
    (
        "extraction_strength", "ES", "share of the true answer that the rest of it brings back",
        Better.NEAR_RETAIN_ONLY, Better.HIGHER, ("forget",),
    ),
    ("repetition", "Repetition", "repeated n-grams of the generations", Better.LOWER, Better.LOWER, ("forget",)),
    ("distinct_2", "Distinct-2", "different bigrams of the generations", Better.NEITHER, Better.NEITHER, ()),
    ("word_entropy", "Entropy", "of the generations' words", Better.NEITHER, Better.NEITHER, ()),
    ("refusals", "Refusals", "share of generations that refuse", Better.NEITHER, Better.NEITHER, ()),
]  # fmt: skip

MEMBERSHIP_SCORES = {
    "loss": "Loss",
    "zlib": "Zlib",
    "min_k": "Min-K%",
    "min_k_plus_plus": "Min-K%++",
    "reference": "Reference",
    "gradient_norm": "Gradient norm",
}
MEMBERSHIP_DIRECTION = "1: fully recognised as seen; 0.5: not to be told from unseen; below: over-forgotten"


def _columns() -> Iterable[Column]:
    yield Column(
        "forget_quality",
        "Forget Quality",
        "p-value of a Kolmogorov-Smirnov test between the truth ratios of the model and of the retain-only one",
        Better.HIGHER,
        headline=True,
    )
    yield Column(
        "forget_quality_log10_p",
        "log10 p",
        "logarithm of Forget Quality, which still tells models apart where p has run out",
        Better.HIGHER,
        headline=True,
        digits=2,
    )
    yield Column(
        "forget_quality_ks_statistic",
        "KS",
        "the test's statistic, the largest distance of the two distributions",
        Better.LOWER,
        headline=True,
    )
    yield Column(
        "model_utility",
        "Model Utility",
        "harmonic mean of probability, ROUGE-L recall and truth ratio on what is kept",
        Better.HIGHER,
        headline=True,
    )
    yield Column(
        "forget_verbatim",
        "VerbMem",
        f"{SET_NAMES['forget']}: passages that the model continues, against how they go on (ROUGE-L F1)",
        Better.NEAR_RETAIN_ONLY,
        headline=True,
    )
    for name, better in (("forget", Better.NEAR_RETAIN_ONLY), ("retain", Better.HIGHER)):
        yield Column(
            f"{name}_knowledge", f"KnowMem({name})", f"{SET_NAMES[name]}: {_KNOWLEDGE}", better, headline=True
        )
    for name, of_whom in SET_NAMES.items():
        for part, title, meaning, on_forget, on_kept, headline in _OF_SETS:
            better = on_forget if name in _FORGOTTEN else on_kept
            yield Column(
                f"{name}_{part}",
                f"{title}({name})",
                f"{of_whom}: {meaning}",
                Better.NEITHER if name == "holdout" else better,
                name in headline,
            )
    for part, of_whom in (
        ("relearned", "forget rows that were relearned"),
        ("held_back", "forget rows that were not"),
    ):
        for name, title, meaning, *_ in _OF_SETS[:3]:
            yield Column(
                f"{part}_{name}",
                f"{title}({part.replace('_', ' ')})",
                f"of a probe, {of_whom}: {meaning}",
                Better.NEITHER,
            )
    for name, title in MEMBERSHIP_SCORES.items():
        yield Column(
            f"membership_{name}_auc",
            f"AUC {title}",
            f"membership inference, forget set against holdout ({MEMBERSHIP_DIRECTION})",
            Better.NEAR_UNSEEN,
            name == "min_k",
        )
    yield Column(
        "priv_leak",
        "PrivLeak",
        "Min-K% AUC against the retain-only model's, in percent; negative: under-, positive: over-forgotten",
        Better.NEAR_ZERO,
        headline=True,
        digits=1,
    )


def _of_request(place: int) -> Iterable[Column]:
    name, of_whom = f"request_{place}", f"what was to be forgotten by request {place}"
    for questions in ("", "_questions"):
        for part, title, meaning, on_forget, *_ in _OF_SETS:
            yield Column(
                f"{name}{questions}_{part}",
                f"{title}(request {place}{questions.replace('_', ' ')})",
                f"{questions[1:] + ' about ' if questions else ''}{of_whom}: {meaning}",
                on_forget,
            )
    yield Column(
        f"{name}_knowledge", f"KnowMem(request {place})", f"{of_whom}: {_KNOWLEDGE}", Better.NEAR_RETAIN_ONLY
    )


COLUMNS: dict[str, Column] = {each.key: each for each in _columns()}


def columns_of(figures: Iterable[str]) -> list[Column]:
    """The columns for these figures, in the order of reports; figures that are not known come last."""
    found = set(figures)
    requests = {int(match[1]) for key in found if (match := _REQUEST.match(key))}
    known = COLUMNS | {each.key: each for place in sorted(requests) for each in _of_request(place)}
    unknown = sorted(found - known.keys())
    return [each for key, each in known.items() if key in found] + [
        Column(key, key, "a figure that reports do not know", Better.NEITHER) for key in unknown
    ]
