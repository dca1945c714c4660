"""LUME's score: how much of each task is regurgitated and known, and whether rows can be told from unseen ones."""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean, harmonic_mean

from torch import Tensor

from dipo_pl.metrics.base import FORGET, HOLDOUT, EvaluationMetric, MeasuredSet
from dipo_pl.metrics.inputs import Numbers, as_sample, reject
from dipo_pl.metrics.membership import auroc
from dipo_pl.metrics.observations import Observations
from dipo_pl.metrics.result import EvaluationResult, SetResult

RETAIN, MEMBER, NONMEMBER = "retain", "member", "nonmember"
# The value of a row by the kind of its set, and the name of its mean over all tasks.
RATES = {"regurgitation": ("rouge_l_recall", "regurgitation"), "knowledge": ("exact_match", "exact_match")}
# Values of generated answers, which the sets of all rows lack.
GENERATED = ("rouge_l_recall", "repetition", "distinct_2", "word_entropy", "refusals")
TASK_SET = re.compile(rf"(?P<whole>\w+?)_(?P<task>task\d)_(?P<kind>{'|'.join(RATES)})")


def task_aggregate(forget: Numbers, retain: Numbers) -> float:
    r"""Return the harmonic mean of 1 - f over the rates f of the forget set and of the rates r of the retain set.

    2 M / (sum_i 1 / (1 - f_i) + sum_i 1 / r_i). The benchmark has M = 6 rates of each set: for each of three tasks the mean
    `rouge_l_recall` of continuations and the mean `exact_match` of answers. 0 if a rate of the forget set is 1 or one of
    the retain set is 0.

    Source: SemEval-2025 task 4 (LUME, arXiv:2502.15097), "Task Aggregate".

    Args:
        forget: [M] rates in [0, 1], which are to be low.
        retain: [M] rates in [0, 1], which are to be high.

    Returns:
        The mean, in [0, 1]; higher is better.

    Raises:
        ValueError: an argument is not [M], empty, or has a rate outside [0, 1].
    """
    rates = [("forget", as_sample("forget", forget)), ("retain", as_sample("retain", retain))]
    for name, values in rates:
        advice = "average the scores of each task first"
        reject(name, values, lambda each: (each < 0) | (each > 1), "rates in [0, 1]", advice)
    return float(harmonic_mean([*(1 - rates[0][1]).tolist(), *rates[1][1].tolist()]))


def membership_score(auc: float) -> float:
    """Return 1 - 2 |auc - 1/2|: 1 if members cannot be told from others, 0 if all can, from either side.

    Source: SemEval-2025 task 4 (LUME, arXiv:2502.15097), "MIA score", of an attack by loss.

    Args:
        auc: `auroc` of the losses of members and nonmembers.

    Raises:
        ValueError: the area is not in [0, 1].
    """
    if not 0 <= auc <= 1:
        raise ValueError(f"auc must be an area in [0, 1] (got {auc}): pass the result of auroc")
    return 1 - 2 * abs(auc - 0.5)


def lume_aggregate(task: float, membership: float, mmlu: float) -> float:
    """Return the mean of the three parts of LUME's published aggregate.

    Source: SemEval-2025 task 4 (LUME, arXiv:2502.15097), "Final Score".

    Args:
        task: `task_aggregate` of all three tasks.
        membership: `membership_score`.
        mmlu: accuracy on MMLU, which the benchmark measures with Open Instruct.

    Raises:
        ValueError: a part is not in [0, 1].
    """
    parts = as_sample("parts", [task, membership, mmlu])
    reject("parts", parts, lambda each: (each < 0) | (each > 1), "in [0, 1]", "pass shares, not percentages")
    return float(parts.mean())


class LUMEScore(EvaluationMetric):
    """Metrics of the sets that `LUME` has: their rates over all tasks, and the parts of the benchmark's score.

    `SET_regurgitation` and `SET_exact_match` are the means of `rouge_l_recall` and `exact_match` over the rows of all
    tasks, for `forget`, `retain` and `holdout`; `SET_rouge_l_recall` and the metrics of `Fluency` are the means over all
    rows, if all are measured. `lume_task_aggregate` is `task_aggregate` of the means of each task: of 4 rates a task, and
    the benchmark's only if all three tasks are measured. `lume_membership` is `membership_score` of the losses of the sets
    `member` and `nonmember`, as in the benchmark; without these sets, of the answers of `forget` and `holdout`. The
    benchmark's aggregate also needs MMLU, see `lume_aggregate`; `lume_without_mmlu`, the mean of the other two parts,
    cannot be compared with it.
    """

    inputs = ("nll",)

    def applies(self, measured: MeasuredSet) -> bool:
        """Return True for the sets that membership is measured on."""
        return measured.name in (MEMBER, NONMEMBER)

    def per_row(self, seen: Observations) -> dict[str, Tensor]:
        """Return the loss of each document."""
        return {"document_loss": seen.nll[:, 0]}

    def of_set(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return nothing: means of losses say nothing about membership."""
        return {}

    def across(self, sets: Mapping[str, SetResult], retain: EvaluationResult | None) -> dict[str, float]:
        """Return the rates over all tasks and the parts of the score, as far as their sets are measured."""
        tasks = _tasks(sets)
        if not tasks:
            return {}
        found: dict[str, float] = {}
        for whole, of in tasks.items():
            for kind, (value, name) in RATES.items():
                values = [each.values(value) for (_, other), each in of.items() if other == kind]
                found |= _mean(f"{whole}_{name}", values)
            if whole in sets and len(sets[whole].rows) == sum(len(each.rows) for each in of.values()):
                for name in GENERATED:
                    found |= _mean(f"{whole}_{name}", [each.values(name) for each in of.values()])
        names = sorted({task for each in (FORGET, RETAIN) for task, _ in tasks.get(each, {})})
        forget, kept = (_task_rates(tasks.get(each, {}), names) for each in (FORGET, RETAIN))
        if forget and kept:
            found["lume_task_aggregate"] = task_aggregate(forget, kept)
        members, others = _losses(sets)
        if members is not None and others is not None:
            found["lume_membership"] = membership_score(auroc(members, others))
        parts = ("lume_task_aggregate", "lume_membership")
        if all(each in found for each in parts):
            found["lume_without_mmlu"] = fmean(found[each] for each in parts)
        return found


def _tasks(sets: Mapping[str, SetResult]) -> dict[str, dict[tuple[str, str], SetResult]]:
    """Return the results of `forget`, `retain`, ... by task and kind."""
    found: dict[str, dict[tuple[str, str], SetResult]] = {}
    for name, result in sets.items():
        if match := TASK_SET.fullmatch(name):
            found.setdefault(match["whole"], {})[match["task"], match["kind"]] = result
    return found


def _mean(name: str, values: Sequence[list[float] | None]) -> dict[str, float]:
    """Return the mean over the rows of several sets by its name; nothing if one of them lacks the value."""
    known = [each for each in values if each is not None]
    if not known or len(known) < len(values):
        return {}
    return {name: fmean(value for each in known for value in each)}


def _task_rates(of: Mapping[tuple[str, str], SetResult], tasks: Sequence[str]) -> list[float]:
    """Return both rates of each task; nothing if one is missing."""
    keys = [(task, kind) for task in tasks for kind in RATES]
    values = [of[key].values(RATES[key[1]][0]) if key in of else None for key in keys]
    known = [fmean(each) for each in values if each is not None]
    return known if len(known) == len(keys) else []


def _losses(sets: Mapping[str, SetResult]) -> Sequence[list[float] | None]:
    """Return the losses of members and of nonmembers."""
    if MEMBER in sets and NONMEMBER in sets:
        return [sets[name].values("document_loss") for name in (MEMBER, NONMEMBER)]
    if FORGET not in sets or HOLDOUT not in sets:
        return None, None
    losses: list[list[float]] = [[row["nll"][0] for row in sets[name].rows] for name in (FORGET, HOLDOUT)]
    return losses
