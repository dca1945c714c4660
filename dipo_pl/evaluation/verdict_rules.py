"""The rules of a verdict: each compares one thing that was measured with its threshold and says so in a sentence."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal, NamedTuple

Metrics = Mapping[str, Any]
Status = Literal["met", "partly", "missed", "not_tested"]
Baseline = Literal["retain-only model", "holdout", "wrong answers", "target", "this run", "none"]

# Below this probability or utility a target model has nothing to forget or to lose.
KNOWS_NOTHING = 0.1
# A distance between the target and its baseline below this is noise, whatever its share.
LEAST_DISTANCE = 0.02
# What a target can lose, by metric: the first one of which it has enough is judged.
UTILITIES = {
    "model_utility": "Model Utility",
    "retain_knowledge": "KnowMem(retain)",
    "retain_probability": "P(retain)",
}
# What is forgotten, by rule: its name in sentences, and the metric of the forget set, which is higher the more is known.
MEASURES = {
    "forget_probability": ("P(forget)", "probability"),
    "forget_rouge": ("ROUGE(forget)", "rouge_l_recall"),
    "extraction_strength": ("extraction strength", "extraction_strength"),
    "forget_verbatim": ("VerbMem", "verbatim"),
    "forget_knowledge": ("KnowMem(forget)", "knowledge"),
}
# The probability of a request's rows, in a sequence of requests.
REQUEST = re.compile(r"request_\d+_probability")
GENERATED = ("rouge_l_recall", "verbatim", "knowledge")


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of the rules, as shares unless stated otherwise.

    Attributes:
        removed: of the distance between the target and its baseline, the share that must be gone.
        partly: the share that must be gone for a rule to be partly met.
        least_distance: of the target's value, the least distance to a baseline that can be measured.
        membership: distance of the area under the curve from where it should be.
        forget_quality: p-value of the Kolmogorov-Smirnov test.
        utility: of the target's utility, the share that must be kept.
        repetition: rise of the share of repeated word 4-grams in answers to retain questions.
        word_entropy: of the target's word entropy in these answers, the share that must be kept.
    """

    removed: float = 0.8
    partly: float = 0.5
    least_distance: float = 0.1
    membership: float = 0.1
    forget_quality: float = 0.05
    utility: float = 0.95
    repetition: float = 0.1
    word_entropy: float = 0.8


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made from.

    Attributes:
        target: the evaluation before training; empty if there is none.
        now: the evaluation of the judged weights; empty if there is none.
        retain: the retain-only model's metrics; None if there is no such model.
        forgotten: names of the evaluation sets that were to be forgotten; each of them must be.
        wrong_answers: the target's mean probability of wrong answers to the questions of these sets, by set.
        rows: number of rows of each evaluation set; empty if not known.
        collapse: signs of a collapse in the judged weights, a sentence each.
        warnings: other warnings of the run, a sentence each.
    """

    target: Metrics
    now: Metrics
    retain: Metrics | None = None
    forgotten: Sequence[str] = ("forget",)
    wrong_answers: Mapping[str, float] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    collapse: Sequence[str] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Reason:
    """The outcome of one rule.

    Attributes:
        rule: name of the rule.
        status: its outcome.
        evidence: what the statement rests on.
        text: one sentence with the figures and the threshold.
        value: what was compared with the threshold; None if nothing was.
        threshold: of the rule; None if it has none.
    """

    rule: str
    status: Status
    evidence: Baseline
    text: str
    value: float | None = None
    threshold: float | None = None


class Kept(NamedTuple):
    """Utility before training and now."""

    title: str
    before: float
    now: float

    @property
    def share(self) -> float:
        """Share of the target's utility that is left."""
        return self.now / self.before


def kept_utility(target: Metrics, now: Metrics) -> Kept | None:
    """Return the utility of two evaluations; None if the target had none, or it was not measured in both."""
    name = next((each for each in UTILITIES if target.get(each, 0) >= KNOWS_NOTHING), None)
    return None if name is None or name not in now else Kept(UTILITIES[name], target[name], now[name])


def measured_again(target: Metrics, now: Metrics) -> Metrics:
    """Return what an evaluation of the target has in common with one now, which may lack what needs generated answers."""
    return {name: value for name, value in target.items() if name in now}


def baseline(evidence: Evidence, rows: str, name: str) -> tuple[float | None, Baseline]:
    """Return the value that a model would have which does not know the rows, and what says so.

    The best evidence comes first: a retain-only model, the target's own value on rows of the same form that it never
    saw, its probability of wrong answers to the same questions.

    Args:
        evidence: what is known.
        rows: name of the evaluation set.
        name: a metric of the set, without the set's name.
    """
    key = f"{rows}_{name}"
    if evidence.retain is not None and key in evidence.retain:
        return evidence.retain[key], "retain-only model"
    if f"holdout_{name}" in evidence.target:
        return evidence.target[f"holdout_{name}"], "holdout"
    if name == "probability" and rows in evidence.wrong_answers:
        return evidence.wrong_answers[rows], "wrong answers"
    return None, "target"


def removed_share(evidence: Evidence, rows: str, name: str, thresholds: Thresholds) -> float | None:
    """Return (target - now) / (target - baseline) of a set; without a baseline, 1 - now / target.

    None if it was not measured, or the target hardly differs from its baseline, so that there is nothing to measure.
    """
    key = f"{rows}_{name}"
    if key not in evidence.target or key not in evidence.now:
        return None
    before, (base, _) = evidence.target[key], baseline(evidence, rows, name)
    least = max(LEAST_DISTANCE, thresholds.least_distance * before) if base is not None else KNOWS_NOTHING
    distance = before - (base or 0.0)
    return None if distance < least else float((before - evidence.now[key]) / distance)


def least_removed(evidence: Evidence, name: str, thresholds: Thresholds) -> float | None:
    """Return the removed share of the set that is forgotten least; None if there was nothing to measure in any."""
    found = [removed_share(evidence, rows, name, thresholds) for rows in evidence.forgotten]
    return min((each for each in found if each is not None), default=None)


def metric_thresholds(evidence: Evidence, thresholds: Thresholds) -> dict[str, float]:
    """Return the value that each metric must pass for its rule to be met, by metric.

    What is known of the forget set must be at most target - removed * (target - baseline); utility and Forget Quality
    must be at least this.
    """
    target, found = evidence.target, {}
    for rows, (_, name) in product(evidence.forgotten, MEASURES.values()):
        if removed_share(replace(evidence, now=target), rows, name, thresholds) is not None:
            before, (base, _) = target[f"{rows}_{name}"], baseline(evidence, rows, name)
            found[f"{rows}_{name}"] = before - thresholds.removed * (before - (base or 0.0))
    kept = next((each for each in UTILITIES if target.get(each, 0) >= KNOWS_NOTHING), None)
    if kept is not None:
        found[kept] = thresholds.utility * target[kept]
    if "forget_quality" in target and lowest_p(evidence) <= thresholds.forget_quality:
        found["forget_quality"] = thresholds.forget_quality
    return found


def forgetting(evidence: Evidence, thresholds: Thresholds) -> list[Reason]:
    """Return how much is gone by each measure of what the model knows of the rows, of the set that is forgotten least."""
    found = [_least_forgotten(evidence, thresholds, rule) for rule in MEASURES]
    if any(all(f"{rows}_{name}" not in evidence.now for name in GENERATED) for rows in evidence.forgotten):
        why = "no answers to the forget rows were generated at this step, so nobody has seen what the model says"
        found.append(Reason("forget_rouge", "not_tested", "none", why))
    return [each for each in found if each is not None]


def _least_forgotten(evidence: Evidence, thresholds: Thresholds, rule: str) -> Reason | None:
    found = [_forgetting(evidence, thresholds, rule, rows) for rows in evidence.forgotten]
    measured = (each for each in found if each is not None)
    # A set of which there was nothing to forget counts only if there is no other.
    return min(measured, key=lambda each: math.inf if each.value is None else each.value, default=None)


def _forgetting(evidence: Evidence, thresholds: Thresholds, rule: str, rows: str) -> Reason | None:
    title, name = MEASURES[rule]
    if len(evidence.forgotten) > 1:
        title = f"{title} of {rows.replace('_', ' ')}"
    key = f"{rows}_{name}"
    if key not in evidence.target or key not in evidence.now:
        return None
    before, now = evidence.target[key], evidence.now[key]
    base, source = baseline(evidence, rows, name)
    whose = {
        "retain-only model": "a retain-only model has",
        "holdout": "the target has on unseen rows (holdout)",
        "wrong answers": "the target has for wrong answers",
    }
    share = removed_share(evidence, rows, name, thresholds)
    if share is None:
        than = (
            f"hardly more than the {base:.3g} that {whose[source]}"
            if base is not None
            else "close to nothing"
        )
        text = f"{title} was {before:.3g} before training, {than}: there was little to forget by this measure"
        return Reason(rule, "not_tested", source, text, None, thresholds.removed)
    status: Status = (
        "met" if share >= thresholds.removed else "partly" if share >= thresholds.partly else "missed"
    )
    went = f"{title} went from {before:.3g} to {now:.3g}"
    gone = f"{max(share, 0.0):.0%}" if share < 1 else "all"
    if base is None:
        what = f"{gone} of it is gone, compared with 0 since nothing says what a model has that never saw the rows"
    else:
        what = f"{gone} of the way to the {base:.3g} that {whose[source]}"
    return Reason(
        rule, status, source, f"{went}: {what} (at least {thresholds.removed:.0%})", share, thresholds.removed
    )


def earlier_requests(evidence: Evidence) -> Reason | None:
    """Return whether rows that earlier runs have forgotten are known again; None if there are no such rows.

    They are if their probability is above what it was before training, and above a model's that never saw them.
    """
    rises = {}
    for key in evidence.target.keys() & evidence.now.keys():
        rows = key.removesuffix("_probability")
        if REQUEST.fullmatch(key) and rows not in evidence.forgotten:
            base, _ = baseline(evidence, rows, "probability")
            rises[rows] = evidence.now[key] - max(evidence.target[key], base or 0.0)
    if not rises:
        return None
    highest = max(rises.values())
    back = [
        f"P({rows.replace('_', ' ')}) rose from {evidence.target[f'{rows}_probability']:.3g} to "
        f"{evidence.now[f'{rows}_probability']:.3g}"
        for rows in sorted(rises)
        if rises[rows] > LEAST_DISTANCE
    ]
    if back:
        text = f"{', '.join(back)}: rows of an earlier request are coming back"
        return Reason("earlier_requests", "missed", "target", text, highest, LEAST_DISTANCE)
    text = f"P of no earlier request rose by more than {LEAST_DISTANCE:g}"
    return Reason("earlier_requests", "met", "target", text, highest, LEAST_DISTANCE)


def lowest_p(evidence: Evidence) -> float:
    """Return the lowest p-value that the test of Forget Quality can have with these forget rows; 0 if none are known."""
    rows = evidence.rows.get("forget", 0)
    # 2 / binom(2n, n), also of more rows than such a number is quickly computed of.
    return 2 * math.exp(2 * math.lgamma(rows + 1) - math.lgamma(2 * rows + 1)) if rows else 0.0


def forget_quality(evidence: Evidence, thresholds: Thresholds) -> Reason | None:
    """Return whether truth ratios differ from a retain-only model's; None without such a model."""
    if "forget_quality" not in evidence.now:
        return None
    value = evidence.now["forget_quality"]
    if (lowest := lowest_p(evidence)) > thresholds.forget_quality:
        text = (
            f"Forget Quality is {value:.2g}, and of {evidence.rows['forget']} rows it is never below {lowest:.2g}: they are "
            f"too few to tell (above {thresholds.forget_quality:g})"
        )
        return Reason(
            "forget_quality", "not_tested", "retain-only model", text, value, thresholds.forget_quality
        )
    status: Status = "met" if value > thresholds.forget_quality else "missed"
    text = (
        f"Forget Quality is {value:.2g}: truth ratios {'do not differ' if status == 'met' else 'differ'} "
        f"from a retain-only model's (above {thresholds.forget_quality:g})"
    )
    return Reason("forget_quality", status, "retain-only model", text, value, thresholds.forget_quality)


def utility(evidence: Evidence, thresholds: Thresholds) -> Reason:
    """Return whether the model still can do what it could."""
    kept = kept_utility(evidence.target, evidence.now)
    if kept is None:
        why = "what the model still can do was not measured, or it could do next to nothing before"
        return Reason("utility", "not_tested", "none", why)
    status: Status = (
        "met"
        if kept.share >= thresholds.utility
        else "partly"
        if kept.share >= thresholds.partly
        else "missed"
    )
    text = (
        f"{kept.title} went from {kept.before:.3g} to {kept.now:.3g}: {kept.share:.0%} is kept "
        f"(at least {thresholds.utility:.0%})"
    )
    return Reason("utility", status, "target", text, kept.share, thresholds.utility)


def fluency(evidence: Evidence, thresholds: Thresholds) -> Reason:
    """Return whether answers to retain questions are still language, by repetition and vocabulary."""
    target, now = evidence.target, evidence.now
    keys = ("retain_repetition", "retain_word_entropy")
    if not all(key in each for key in keys for each in (target, now)):
        return Reason(
            "fluency", "not_tested", "none", "no answers to retain rows were generated at this step"
        )
    rise = now[keys[0]] - target[keys[0]]
    words = now[keys[1]] / target[keys[1]] if target[keys[1]] else 1.0
    fluent = rise <= thresholds.repetition and words >= thresholds.word_entropy
    text = (
        f"answers to retain rows repeat {now[keys[0]]:.0%} of their 4-grams (before {target[keys[0]]:.0%}, at most "
        f"{thresholds.repetition:.0%} more) and keep {words:.0%} of their word entropy (at least "
        f"{thresholds.word_entropy:.0%})"
    )
    bound = thresholds.repetition if rise > thresholds.repetition else thresholds.word_entropy
    value = rise if rise > thresholds.repetition else words
    return Reason("fluency", "met" if fluent else "missed", "target", text, value, bound)


def collapse(evidence: Evidence, was_seen: bool) -> Reason:
    """Return whether the judged weights are those of a broken model.

    Args:
        evidence: what is known.
        was_seen: utility or fluency was measured, so that a collapse would have been seen.
    """
    if evidence.collapse:
        return Reason("collapse", "missed", "target", "; ".join(evidence.collapse))
    if not was_seen:
        return Reason("collapse", "not_tested", "none", "neither utility nor language was measured")
    return Reason("collapse", "met", "target", "no sign of a collapse at this step")
