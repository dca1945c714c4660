"""TOFU's aggregated evaluation logs, whole or reduced to the columns that are read."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from dipo_pl.errors import InputError
from dipo_pl.evaluation.by_index import finite, in_order, same_rows
from dipo_pl.metrics.conventions import CONVENTIONS, UTILITY_SETS
from dipo_pl.metrics.model_utility import model_utility
from dipo_pl.metrics.probability import answer_probability, option_probability
from dipo_pl.metrics.result import EvaluationResult, SetResult
from dipo_pl.metrics.truth_ratio import log_truth_ratio, truth_ratio_closeness, truth_ratio_margin

# The sets, and the logs that TOFU names after the files they were gathered from.
LOGS = {
    "retain": "eval_log.json",
    "forget": "eval_log_forget.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
OPTION_SETS = ("real_authors", "world_facts")
COLUMNS = ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall")

_CONVENTION = CONVENTIONS["tofu"]


def is_tofu_log(given: Mapping[str, Any]) -> bool:
    """Return True if parsed JSON is such a log, by its keys."""
    groups = (given.get(key) for names in LOGS.items() for key in names)
    return any(isinstance(group, Mapping) and not group.keys().isdisjoint(COLUMNS) for group in groups)


def parse(given: Mapping[str, Any], source: str) -> EvaluationResult:
    """Return the result in an aggregated log, with metrics as TOFU's `aggregate_eval_stat.py` computes them.

    Source: https://github.com/locuslab/tofu at 8c49eee, `aggregate_eval_stat.py` and the `eval_log_aggregated.json`
    files in its `data`.

    Args:
        given: TOFU's layout, {"eval_log_forget.json": {"avg_gt_loss": {"0": nats per token, ...}, ...}, ...}, or the
            reduced one, {"forget": {"avg_gt_loss": [...], ...}, ...}, with `fingerprints` of the rows where they are
            known. A log may lack sets; Model Utility needs three.
        source: the name of the log in an error.

    Raises:
        InputError: a column or row is missing, a value is no finite number, or there are more rows than the
            convention `tofu` takes.
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
    for column in COLUMNS:
        if not isinstance(log, Mapping) or column not in log:
            raise InputError(f"{where} has no {column}: give the log as TOFU's evaluation wrote it")
    columns = {column: in_order(log[column], f"{where}, {column}") for column in COLUMNS}
    count = same_rows(columns, where)
    if _CONVENTION.rows is not None and count > _CONVENTION.rows:
        raise InputError(
            f"{where} has {count} rows, and the convention tofu takes the first {_CONVENTION.rows}: evaluate with "
            f"ds_size={_CONVENTION.rows}"
        )
    original, correct, wrong, rouge = (
        [_numbers(each, f"{where}, {column}, row {row}") for row, each in enumerate(values)]
        for column, values in columns.items()
    )
    try:
        probability = (
            option_probability(original, wrong) if name in OPTION_SETS else answer_probability(original)
        )
        log_ratio = log_truth_ratio(correct, wrong)
        score = truth_ratio_closeness if name == "forget" else truth_ratio_margin
        truth_ratio = float(score(log_ratio.exp()).mean())
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    values = {
        "probability": probability.tolist(),
        "log_truth_ratio": log_ratio.tolist(),
        "rouge_l_recall": rouge,
    }
    rows = [
        {"row": row, "nll": [original[row], correct[row], *wrong[row]]}
        | {key: each[row] for key, each in values.items()}
        for row in range(count)
    ]
    metrics = {
        "probability": float(probability.mean()),
        "rouge_l_recall": fmean(rouge),
        "truth_ratio": truth_ratio,
    }
    return SetResult(metrics, rows, fingerprint)


def _numbers(value: Any, where: str) -> Any:
    return [finite(each, where) for each in value] if isinstance(value, list) else finite(value, where)
