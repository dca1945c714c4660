"""TOFU's aggregated evaluation logs, whole or reduced to what is read of them."""

from collections.abc import Mapping
from typing import Any

from dipo_pl.errors import InputError
from dipo_pl.evaluation.by_index import finite, in_order, same_rows
from dipo_pl.evaluation.conventions import CONVENTIONS, UTILITY_SETS
from dipo_pl.evaluation.result import EvaluationResult, SetResult
from dipo_pl.metrics.functional import (
    answer_probability,
    log_truth_ratio,
    model_utility,
    option_probability,
    truth_ratio_closeness,
    truth_ratio_margin,
)

# The sets, and the logs that TOFU names after the files they were gathered from.
LOGS = {
    "retain": "eval_log.json",
    "forget": "eval_log_forget.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
OPTION_SETS = ("real_authors", "world_facts")

_ORIGINAL, _CORRECT, _WRONG, _ROUGE = COLUMNS = (
    "avg_gt_loss",
    "avg_paraphrased_loss",
    "average_perturb_loss",
    "rougeL_recall",
)
_CONVENTION = CONVENTIONS["tofu"]


def is_tofu_log(given: Mapping[str, Any]) -> bool:
    """Whether parsed JSON is such a log, by its keys."""
    groups = (given.get(key) for names in LOGS.items() for key in names)
    return any(isinstance(group, Mapping) and not group.keys().isdisjoint(COLUMNS) for group in groups)


def parse(given: Mapping[str, Any], source: str) -> EvaluationResult:
    """The result in an aggregated log, figures as TOFU's `aggregate_eval_stat.py` computes them.

    Source: https://github.com/locuslab/tofu at 8c49eee, `aggregate_eval_stat.py` and the
    `eval_log_aggregated.json` files in its `data`.

    Args:
        given: TOFU's layout, {"eval_log_forget.json": {"avg_gt_loss": {"0": nats per token, ...}, ...}, ...}, or the
            reduced one, {"forget": {"avg_gt_loss": [...], ...}, ...}, with the rows' `fingerprints` where they are
            known. A log may lack sets; Model Utility needs three.
        source: what to call it in an error.
    Raises:
        InputError: a column or row is missing, a value is no finite number, or there are more rows than the
            convention `tofu` measures.
    """
    sets = {
        name: _set_result(name, given[key], f"{source}, {key}", given.get("fingerprints", {}).get(name))
        for name, log in LOGS.items()
        for key in (log, name)
        if key in given
    }
    values = {f"{name}_{key}": each for name, found in sets.items() for key, each in found.metrics.items()}
    utility_sets = UTILITY_SETS if sets.keys() >= set(UTILITY_SETS) else ()
    if utility_sets:
        parts = [value for name in utility_sets for value in sets[name].metrics.values()]
        values["model_utility"] = model_utility(parts)
    return EvaluationResult(_CONVENTION.name, values, sets, utility_sets=list(utility_sets))


def _set_result(name: str, log: Any, where: str, fingerprint: str | None) -> SetResult:
    lacking = [column for column in COLUMNS if not isinstance(log, Mapping) or column not in log]
    if lacking:
        raise InputError(f"{where} has no {lacking[0]}: give the log as TOFU's evaluation wrote it")
    columns = {column: in_order(log[column], f"{where}, {column}") for column in COLUMNS}
    count = same_rows(columns, where)
    if _CONVENTION.rows is not None and count > _CONVENTION.rows:
        raise InputError(
            f"{where} has {count} rows, and the convention tofu measures the first {_CONVENTION.rows}: evaluate with "
            f"ds_size={_CONVENTION.rows}"
        )
    numbers = {
        column: [_numbers(each, f"{where}, {column}, row {row}") for row, each in enumerate(values)]
        for column, values in columns.items()
    }
    original, wrong = numbers[_ORIGINAL], numbers[_WRONG]
    try:
        probability = (
            option_probability(original, wrong) if name in OPTION_SETS else answer_probability(original)
        )
        log_ratio = log_truth_ratio(numbers[_CORRECT], wrong)
        closeness = truth_ratio_closeness if name == "forget" else truth_ratio_margin
        score = closeness(log_ratio.exp())
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    values = {
        "probability": probability.tolist(),
        "log_truth_ratio": log_ratio.tolist(),
        "rouge_l_recall": numbers[_ROUGE],
    }
    means = {
        "probability": float(probability.mean()),
        "rouge_l_recall": sum(numbers[_ROUGE]) / count,
        "truth_ratio": float(score.mean()),
    }
    rows = [
        {
            "row": row,
            "nll": [original[row], numbers[_CORRECT][row], *wrong[row]],
            **{key: each[row] for key, each in values.items()},
        }
        for row in range(count)
    ]
    return SetResult(means, rows, fingerprint)


def _numbers(value: Any, where: str) -> Any:
    return [finite(each, where) for each in value] if isinstance(value, list) else finite(value, where)
