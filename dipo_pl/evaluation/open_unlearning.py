"""open-unlearning's TOFU_EVAL.json and TOFU_SUMMARY.json, MUSE_EVAL.json and MUSE_SUMMARY.json, read and written.

Known from its source (https://github.com/locuslab/open-unlearning, `src/evals/base.py`, `src/evals/metrics/*.py`,
`configs/eval/tofu_metrics/*.yaml`): TOFU_EVAL.json is {metric: {"agg_value": number, "value_by_index": {"0": {...}}}},
sorted by name, indented by 4; rows are numbered from 0 in the order of the set and have `prob` and `avg_loss` (lists
for several answers), `rougeL_recall` and `generation`, or `score`; an attack mia_* has such an object under `forget`
and `holdout`, and its AUC as `auc` and `agg_value`, 1.0 for a forget set fully recognized. TOFU_SUMMARY.json is
{metric: agg_value}. In MUSE_EVAL.json VerbMem and KnowMem are ROUGE metrics whose agg_value is the mean of
`rougeL_f1`, and exact memorization and extraction strength are of the passages of VerbMem, not of the forget set
(`configs/eval/muse_metrics/*.yaml`).

Guessed, or seen in files of derived projects only: rows that are null as a whole, several answers as a list of objects,
truth ratios under both spellings (forget_truth_ratio, retain_Truth_Ratio), an agg_value that is no number.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from dipo_pl.errors import InputError
from dipo_pl.evaluation.by_index import finite, in_order, same_rows
from dipo_pl.metrics.base import FORGET, HOLDOUT
from dipo_pl.metrics.conventions import CONVENTIONS, UTILITY_SETS
from dipo_pl.metrics.probability import option_probability
from dipo_pl.metrics.result import EvaluationResult, SetResult
from dipo_pl.metrics.truth_ratio import log_truth_ratio
from dipo_pl.storage.files import write_text

PREFIXES = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
ATTACKS = {
    "loss": "mia_loss",
    "zlib": "mia_zlib",
    "min_k": "mia_min_k",
    "min_k_plus_plus": "mia_min_k_plus_plus",
    "reference": "mia_reference",
    "gradient_norm": "mia_gradnorm",
}
MEMORIZATION = ("exact_memorization", "extraction_strength")
# MUSE's sets with generated answers: the name of the metric of each, here and there.
MUSE_SETS = {
    "verbatim": ("forget_verbatim", "forget_verbmem_ROUGE"),
    "forget_questions": ("forget_knowledge", "forget_knowmem_ROUGE"),
    "retain_questions": ("retain_knowledge", "retain_knowmem_ROUGE"),
}

_CONVENTION = CONVENTIONS["open_unlearning"]
_WITH_PARAPHRASE = ("forget", "retain")

# Names there: of the metrics of a TOFU set, and of the metrics of several sets.
_TOFU_METRICS = {
    **{(name, "probability"): f"{PREFIXES[name]}_Q_A_Prob" for name in _WITH_PARAPHRASE},
    ("real_authors", "probability"): "ra_Q_A_Prob_normalised",
    ("world_facts", "probability"): "wf_Q_A_Prob_normalised",
    **{(name, "rouge_l_recall"): f"{prefix}_Q_A_ROUGE" for name, prefix in PREFIXES.items()},
    ("forget", "truth_ratio"): "forget_truth_ratio",
    **{(name, "truth_ratio"): f"{PREFIXES[name]}_Truth_Ratio" for name in UTILITY_SETS},
}
_METRICS = {
    "forget_quality": "forget_quality",
    "model_utility": "model_utility",
    **{f"membership_{name}_auc": key for name, key in ATTACKS.items()},
    "priv_leak": "privleak",
    **dict(MUSE_SETS.values()),
}


class _Column(NamedTuple):
    """One value of each row of a set: its name here, the metric there and the field of that metric's entries."""

    name: str
    log: str
    field: str


def _memorized(muse: bool) -> str:
    """Return the set of exact memorization and extraction strength."""
    return "verbatim" if muse else FORGET


def _columns(name: str, muse: bool) -> list[_Column]:
    """Return the values of a set's rows; `original`, `correct` and `wrong` are the losses of the answers."""
    found = [_Column(attack, key, "score") for attack, key in ATTACKS.items() if name in (FORGET, HOLDOUT)]
    found += [_Column(key, key, "score") for key in MEMORIZATION if name == _memorized(muse)]
    if name in MUSE_SETS:
        rouge = MUSE_SETS[name][1]
        found += [_Column("rouge_l_f1", rouge, "rougeL_f1"), _Column("generation", rouge, "generation")]
    elif name in PREFIXES and not muse:
        prefix, rouge = PREFIXES[name], _TOFU_METRICS[name, "rouge_l_recall"]
        found += [
            _Column("original", f"{prefix}_Q_A_Prob", "avg_loss"),
            *(
                [_Column("correct", f"{prefix}_Q_A_PARA_Prob", "avg_loss")]
                if name in _WITH_PARAPHRASE
                else []
            ),
            _Column("wrong", f"{prefix}_Q_A_PERT_Prob", "avg_loss"),
            _Column("probability", _TOFU_METRICS[name, "probability"], "prob"),
            _Column("truth_ratio", _TOFU_METRICS[name, "truth_ratio"], "score"),
            _Column("rouge_l_recall", rouge, "rougeL_recall"),
            _Column("generation", rouge, "generation"),
        ]
    return found


_NAMES = {
    key.lower(): key
    for key in (
        *_TOFU_METRICS.values(),
        *_METRICS.values(),
        *MEMORIZATION,
        *(column.log for name in PREFIXES for column in _columns(name, muse=False)),
    )
}


def is_open_unlearning(given: Mapping[str, Any]) -> bool:
    """Return True if parsed JSON is such a file, by its keys."""
    # A line of metrics.jsonl has some of the same names, and its step.
    return "step" not in given and any(key.lower() in _NAMES for key in given)


def parse(given: Mapping[str, Any], source: str) -> EvaluationResult:
    """Return the result in a TOFU_EVAL.json or MUSE_EVAL.json, or the metrics in a summary, whose sets have no rows.

    Metrics are those of the file. Truth ratios and probabilities among options are computed from the rows' losses if
    it has them: open-unlearning's own go wrong if it skips a row, and underflow to 0. What it skipped is absent from
    that row, and metrics that do not exist here are ignored. Its exact memorization, extraction strength, Min-K%,
    Min-K%++ and gradient norm leave out an answer's last token, and its extraction strength is 1/n, not 0, where all
    n tokens are wrong.

    Args:
        given: the parsed file.
        source: its name in an error.

    Raises:
        InputError: metrics of one set cover different rows; a row's number is not finite, or its truth ratio is not
            that of its losses.
    """
    logs = {_NAMES[key.lower()]: value for key, value in given.items() if key.lower() in _NAMES}
    metrics = _numbers(logs, _METRICS, source)
    if metrics.get("forget_quality"):
        metrics["forget_quality_log10_p"] = math.log10(metrics["forget_quality"])
    muse = _is_muse(metrics)
    sets = {}
    for name in (*PREFIXES, HOLDOUT, *MUSE_SETS):
        found = _numbers(logs, _set_metrics(name, muse), source)
        rows = _rows(logs, name, muse, source)
        if found or rows:
            sets[name] = SetResult(found, rows)
    of_sets = {f"{name}_{key}": value for name, each in sets.items() for key, value in each.metrics.items()}
    utility_sets = UTILITY_SETS if "model_utility" in metrics else ()
    return EvaluationResult(_CONVENTION.name, of_sets | metrics, sets, utility_sets=list(utility_sets))


def evaluation(result: EvaluationResult) -> dict[str, Any]:
    """Return the result as the object in TOFU_EVAL.json, or in MUSE_EVAL.json if it has metrics of MUSE.

    Metrics that are absent here are absent there.

    Raises:
        InputError: the result follows another convention than `open_unlearning`.
    """
    if result.convention != _CONVENTION.name:
        raise InputError(
            f"values of the convention {result.convention!r} are not those of open-unlearning's metrics: evaluate with "
            f"forget_quality.convention {_CONVENTION.name} to write its files"
        )
    logs: dict[str, Any] = {}
    muse = _is_muse(result.metrics)
    values = {key: result.metrics.get(metric) for metric, key in _METRICS.items()}
    for name, found in result.sets.items():
        values |= {key: found.metrics.get(metric) for metric, key in _set_metrics(name, muse).items()}
        for key, entries in _entries(found.rows, _columns(name, muse)).items():
            log = {"agg_value": _mean(entries), "value_by_index": entries}
            logs[key] = logs.get(key, {}) | {name: log} if key in ATTACKS.values() else log
    for key, value in values.items():
        log = logs.pop(key, {})
        if key in ATTACKS.values():
            log = log | {"auc": value} if {FORGET, HOLDOUT} <= log.keys() else {}
        if value is not None:
            logs[key] = log | {"agg_value": value}
    return dict(sorted(logs.items()))


def summary(result: EvaluationResult) -> dict[str, float]:
    """Return the result as the object in TOFU_SUMMARY.json or MUSE_SUMMARY.json.

    Raises:
        InputError: see `evaluation`.
    """
    return {key: value["agg_value"] for key, value in evaluation(result).items()}


def write(result: EvaluationResult, folder: Path) -> list[Path]:
    """Write both files into a folder, and return their paths.

    Raises:
        InputError: see `evaluation`.
    """
    benchmark = "MUSE" if _is_muse(result.metrics) else "TOFU"
    contents = {f"{benchmark}_EVAL": evaluation(result), f"{benchmark}_SUMMARY": summary(result)}
    for name, content in contents.items():
        write_text(folder / f"{name}.json", json.dumps(content, indent=4))
    return [folder / f"{name}.json" for name in contents]


def _is_muse(metrics: Mapping[str, float]) -> bool:
    return any(metric in metrics for metric, _ in MUSE_SETS.values())


def _set_metrics(name: str, muse: bool) -> dict[str, str]:
    """Return the names there of the metrics of a set."""
    found = {} if muse else {metric: key for (of, metric), key in _TOFU_METRICS.items() if of == name}
    return found | {key: key for key in MEMORIZATION if name == _memorized(muse)}


def _numbers(logs: Mapping[str, Any], names: Mapping[str, str], source: str) -> dict[str, float]:
    """Return the metrics that a file has, by their names here."""
    given = {name: logs.get(key) for name, key in names.items()}
    values = {
        name: each.get("agg_value") if isinstance(each, Mapping) else each for name, each in given.items()
    }
    # Its retain references have something else than a number as their own Forget Quality.
    return {
        name: finite(value, f"{source}, {names[name]}")
        for name, value in values.items()
        if isinstance(value, int | float)
    }


def _rows(logs: Mapping[str, Any], name: str, muse: bool, source: str) -> list[dict[str, Any]]:
    """Return the rows of a set."""
    columns: dict[str, list[Any]] = {}
    labels: dict[str, str] = {}
    for column in _columns(name, muse):
        log, label = logs.get(column.log), column.log
        if column.name in ATTACKS and isinstance(log, Mapping):
            log, label = log.get(name), f"{column.log}, {name}"
        values = log.get("value_by_index") if isinstance(log, Mapping) else None
        if values is not None:
            where = f"{source}, {label}"
            entries = enumerate(in_order(values, where))
            columns[column.name] = [
                _value(entry, column.field, f"{where}, row {row}") for row, entry in entries
            ]
            labels[column.name] = label
    if name not in _WITH_PARAPHRASE and "original" in columns:
        columns["correct"], labels["correct"] = columns["original"], labels["original"]
    if {"correct", "wrong"} <= columns.keys() and None in [*columns["correct"], *columns["wrong"]]:
        # If a row was skipped, the values of the rows after it are under wrong numbers.
        for made in ("truth_ratio",) if name in _WITH_PARAPHRASE else ("truth_ratio", "probability"):
            columns.pop(made, None)
    if not columns:
        return []
    count = same_rows({labels[key]: column for key, column in columns.items()}, f"{source}, {name}")
    given = [{key: column[row] for key, column in columns.items()} for row in range(count)]
    return [_row(row, name, each, f"{source}, {name}, row {row}") for row, each in enumerate(given)]


def _value(entry: Any, field: str, where: str) -> Any:
    """Return one field of a row: a text, a number, one number for each of several answers, or None."""
    try:
        if entry is None or (field == "generation" and field not in entry):
            return None
        value = [each[field] for each in entry] if isinstance(entry, list) else entry[field]
    except (KeyError, TypeError) as error:
        raise InputError(f"{where} is not what open-unlearning writes ({error!r}): evaluate again") from None
    return value if field == "generation" else _map(lambda each: finite(each, where), value)


def _row(number: int, name: str, given: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a row as results have it, with truth ratio and probability made from its losses if it has them."""
    original, correct, wrong, ratio = (
        given.pop(key, None) for key in ("original", "correct", "wrong", "truth_ratio")
    )
    row: dict[str, Any] = {"row": number}
    original = given.get("loss") if original is None else original
    wrong = [wrong] if isinstance(wrong, float) else wrong
    if original is not None:
        row["nll"] = [original] if correct is None or wrong is None else [original, correct, *wrong]
    if correct is not None and wrong:
        epsilon = _CONVENTION.epsilon
        try:
            row["log_truth_ratio"] = log_truth_ratio([correct], [wrong], epsilon).item()
            among_options = option_probability([correct], [wrong], epsilon).item()
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        expected = math.exp(row["log_truth_ratio"])
        if ratio is not None and not math.isclose(ratio, expected, rel_tol=1e-4, abs_tol=1e-9):
            raise InputError(
                f"{where} has a truth ratio of {ratio:.6g} and losses that give {expected:.6g}: its rows are "
                "misaligned, or its truth ratio has another aggregator (prob_mean): evaluate again with the default one"
            )
        if name not in _WITH_PARAPHRASE:
            given["probability"] = among_options
    elif ratio is not None:
        if ratio <= 0:
            raise InputError(
                f"{where} has a truth ratio of {ratio:g}, which is not above 0, and no losses to make it from: "
                "evaluate again with PARA_Prob and PERT_Prob in the file"
            )
        row["log_truth_ratio"] = math.log(ratio)
    return row | {key: value for key, value in given.items() if value is not None}


def _entries(rows: Sequence[Mapping[str, Any]], columns: Sequence[_Column]) -> dict[str, dict[str, Any]]:
    """Return value_by_index of each metric there of which some row has a value."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        nll = row.get("nll", [])
        values = {**row, **dict(zip(("original", "correct"), nll, strict=False)), "wrong": nll[2:] or None}
        if "log_truth_ratio" in row:
            values["truth_ratio"] = math.exp(row["log_truth_ratio"])
        for column in columns:
            entry = found.setdefault(column.log, {}).setdefault(str(row["row"]), {})
            value = values.get(column.name)
            if column.field == "avg_loss":
                entry["prob"] = _map(lambda loss: math.exp(-loss), value)
            if value is not None or column.field != "generation":
                entry[column.field] = value
    return {
        log: entries
        for log, entries in found.items()
        if any(value is not None for entry in entries.values() for value in entry.values())
    }


def _mean(entries: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return the mean over rows of the probability or score of each, of several answers their mean."""
    given = [entry.get("prob", entry.get("score")) for entry in entries.values()]
    values = [fmean(each) if isinstance(each, list) else each for each in given if each is not None]
    return fmean(values) if values else None


def _map(function: Callable[[float], float], value: Any) -> Any:
    """Return the function of a number, of each number of a list, or None of None."""
    return value if value is None else [*map(function, value)] if isinstance(value, list) else function(value)
