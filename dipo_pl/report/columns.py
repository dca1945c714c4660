"""Descriptions of the metrics that reports show: title, meaning, and which of two values is better."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from dipo_pl.report.run import printable


class Better(Enum):
    """Direction in which a value is better, as the report writes it."""

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

    @property
    def is_described(self) -> bool:
        """False for a metric that is not known here, such as a user's own."""
        return self.meaning != _UNKNOWN

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
        if self.better in (Better.HIGHER, Better.LOWER):
            return value if self.better is Better.LOWER else -value
        unknown = math.nan if retain_only is None else retain_only
        near_unseen = 0.5 if retain_only is None else retain_only
        best = {Better.NEAR_ZERO: 0.0, Better.NEAR_UNSEEN: near_unseen, Better.NEAR_RETAIN_ONLY: unknown}
        return abs(value - best.get(self.better, math.nan))


MEMBERSHIP_SCORES = {
    "loss": "Loss",
    "zlib": "Zlib",
    "min_k": "Min-K%",
    "min_k_plus_plus": "Min-K%++",
    "reference": "Reference",
    "gradient_norm": "Gradient norm",
}
AUC_SCALE = "1: recognized as training data; 0.5: same as unseen; below: forgotten more than unseen"

_UNKNOWN = "metric without a description"


def _of_lume(name: str, text: str) -> dict[str, str]:
    """Return LUME's sets of one part of its rows, with their descriptions."""
    kinds = {"regurgitation": "texts to be continued", "knowledge": "questions"}
    return {
        f"{name}_task{n}_{kind}": f"{what} of Task{n}, {text}"
        for n in (1, 2, 3)
        for kind, what in kinds.items()
    }


_FORGET_SETS = {
    "forget": "forget set",
    "verbatim": "passages of the forget set",
    "forget_questions": "questions about the forget set",
    **_of_lume("forget", "forget set"),
    "forget_level1": "blanks about the people to forget",
    "forget_level2": "questions about the people to forget",
    "forget_level3": "attacks about the people to forget",
    "mia_forget": "texts about the people to forget",
}
_RETAIN_SETS = {
    "retain": "retain set",
    "real_authors": "real authors",
    "world_facts": "world facts",
    "retain_questions": "questions about the retain set",
    **_of_lume("retain", "retain set"),
    "neighbor_level1": "blanks about what is related",
    "neighbor_level2": "questions about what is related",
    "mia_retain": "texts about others",
    "utility_general": "MMLU",
    "utility_reason": "BBH",
    "utility_factuality": "TriviaQA",
}
_OTHER_SETS = {
    "holdout": "holdout set (rows that no model has seen)",
    "relearned": "forget rows that a relearning attack trained on",
    "held_back": "forget rows that a relearning attack did not train on",
    "member": "documents that the target model was trained on",
    "nonmember": "documents that no model has seen",
    **_of_lume("holdout", "holdout set"),
}
_REQUEST = re.compile(r"request_(\d+)_(questions_)?(\w+)")
# Metrics of lm-eval's tasks, and whether more is better; a filter's name may stand behind them.
_OF_LM_EVAL = {
    "acc_norm": True, "acc": True, "exact_match": True, "f1": True, "mc1": True, "mc2": True, "em": True,
    "word_perplexity": False, "byte_perplexity": False, "bits_per_byte": False, "perplexity": False,
}  # fmt: skip
_LM_EVAL = re.compile(rf"lm_eval_(\w+?)_({'|'.join(_OF_LM_EVAL)})(_\w+?)??(_stderr)?")


class _Part(NamedTuple):
    """Metric of a set, with what is better on a forget set and on a retain set, and the sets where it is a headline."""

    title: str
    meaning: str
    on_forget: Better = Better.NEITHER
    on_retain: Better = Better.NEITHER
    headlines: tuple[str, ...] = ()


_SAME = (Better.NEAR_RETAIN_ONLY, Better.HIGHER)
_LESS = (Better.LOWER, Better.LOWER)
_BOTH = ("forget", "retain")
_PARTS = {
    "knowledge": _Part("KnowMem", "ROUGE-L F1 of generated answers to questions", *_SAME, _BOTH),
    "regurgitation": _Part(
        "Regurgitation", "ROUGE-L recall of generated continuations, LUME's tasks", *_SAME, _BOTH
    ),
    "exact_match": _Part("Exact", "share of generated answers that are exactly the true ones", *_SAME, _BOTH),
    "probability": _Part("P", "mean probability of the true answers, per token", *_SAME, _BOTH),
    "rouge_l_recall": _Part("ROUGE", "ROUGE-L recall of the true answers by generated ones", *_SAME, _BOTH),
    "truth_ratio": _Part(
        "TR",
        "truth ratio R: min(R, 1/R) on the forget set, 1/(1 + R) by the convention prob_mean; else max(0, 1 - R)",
        *_SAME,
    ),
    "exact_memorization": _Part("EM", "share of true answer tokens that are the most probable ones", *_SAME),
    "extraction_strength": _Part(
        "ES", "share of the true answer completed from the rest", *_SAME, ("forget",)
    ),
    "repetition": _Part("Repetition", "repeated n-grams in generations", *_LESS, ("forget",)),
    "distinct_2": _Part("Distinct-2", "share of distinct bigrams in generations"),
    "word_entropy": _Part("Entropy", "entropy of the words of generations"),
    "refusals": _Part("Refusals", "share of generations that refuse to answer"),
}


def column_of(key: str) -> Column:
    """Return the description of a metric; one that is not known here, such as a user's own, keeps its name."""
    if known := _KNOWN.get(key):
        return known
    match = _REQUEST.fullmatch(key)
    if match and match[3] in _PARTS:
        part, text = _PARTS[match[3]], f"forget set of request {match[1]}"
        title = f"{part.title}(request {match[1]}{' questions' if match[2] else ''})"
        meaning = f"{'questions about the ' if match[2] else ''}{text}: {part.meaning}"
        return Column(key, title, meaning, part.on_forget)
    if known_task := _LM_EVAL.fullmatch(key):
        return _of_lm_eval(key, *known_task.groups())
    # A user's own metric is shown without being asked for; those of single requests would be many.
    return Column(key, printable(key), _UNKNOWN, Better.NEITHER, headline=not match)


def _of_lm_eval(key: str, task: str, metric: str, filtered: str | None, error: str | None) -> Column:
    """Return the description of a metric of a task of lm-eval; WMDP asks for what is to be forgotten."""
    title = f"{task} {metric}{(filtered or '').replace('_', ' ')}"
    if error:
        meaning = f"standard error of lm-eval's {metric} on the task {task}"
        return Column(key, f"{title} SE", meaning, Better.NEITHER)
    hazardous = task.startswith("wmdp")
    higher = _OF_LM_EVAL[metric] and not hazardous
    asks = "; it asks for hazardous knowledge, and guessing gives 0.25" if hazardous else ""
    return Column(
        key,
        title,
        f"lm-eval: {metric} on the task {task}{asks}",
        Better.HIGHER if higher else Better.LOWER,
        headline=True,
    )


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
    higher, ratios = Better.HIGHER, "the truth ratios of the model and the retain-only model"
    test = f"p-value of a Kolmogorov-Smirnov test between {ratios}"
    yield Column("forget_quality", "Forget Quality", test, higher, True)
    log10_p = "log10 of Forget Quality; does not underflow"
    yield Column("forget_quality_log10_p", "log10 p", log10_p, higher, True, digits=2)
    statistic = f"Kolmogorov-Smirnov statistic: largest gap between the distributions of {ratios}"
    yield Column("forget_quality_ks_statistic", "KS", statistic, Better.LOWER, True)
    utility = "harmonic mean of probability, ROUGE-L recall and truth ratio on the sets that are kept"
    yield Column("model_utility", "Model Utility", utility, higher, True)
    verbatim = "forget set: ROUGE-L F1 of generated continuations of its passages"
    yield Column("forget_verbatim", "VerbMem", verbatim, Better.NEAR_RETAIN_ONLY, True)
    lume = "of LUME: harmonic mean of both rates of each task, of the forget set 1 minus the rate"
    yield Column("lume_task_aggregate", "Task Aggregate", lume, higher, True)
    unseen = "of LUME: 1 - 2 |AUC - 1/2| of a membership inference attack by loss; 1: same as unseen"
    yield Column("lume_membership", "LUME membership", unseen, higher, True)
    parts = "mean of Task Aggregate and LUME membership; the published aggregate has MMLU too"
    yield Column("lume_without_mmlu", "LUME without MMLU", parts, higher)
    for name, text in (_FORGET_SETS | _RETAIN_SETS | _OTHER_SETS).items():
        for key, part in _PARTS.items():
            better = Better.NEITHER if name in _OTHER_SETS else part.on_retain
            better = part.on_forget if name in _FORGET_SETS else better
            title, headline = f"{part.title}({name.replace('_', ' ')})", name in part.headlines
            yield Column(f"{name}_{key}", title, f"{text}: {part.meaning}", better, headline)
    attack = f"membership inference attack, forget set against holdout set ({AUC_SCALE})"
    for name, title in MEMBERSHIP_SCORES.items():
        yield Column(f"membership_{name}_auc", f"AUC {title}", attack, Better.NEAR_UNSEEN, name == "min_k")
    leak = "Min-K% AUC relative to the retain-only model's, in percent; negative: forgot too little, positive: too much"
    yield Column("priv_leak", "PrivLeak", leak, Better.NEAR_ZERO, True, digits=1)


_KNOWN = {each.key: each for each in _described()}
