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
from collections.abc import Mapping, Sequence
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
    """Return the values of a set's rows; `original`, `correct` and `wrong` are of the answers, NLL and probability."""
    found = [_Column(attack, key, "score") for attack, key in ATTACKS.items() if name in (FORGET, HOLDOUT)]
    found += [_Column(key, key, "score") for key in MEMORIZATION if name == _memorized(muse)]
    if name in MUSE_SETS:
        rouge = MUSE_SETS[name][1]
        found += [_Column("rouge_l_f1", rouge, "rougeL_f1"), _Column("generation", rouge, "generation")]
    if name in PREFIXES:
        prefix = PREFIXES[name]
        logs = {"original": f"{prefix}_Q_A_Prob", "wrong": f"{prefix}_Q_A_PERT_Prob"}
        if name in _WITH_PARAPHRASE:
            logs["correct"] = f"{prefix}_Q_A_PARA_Prob"
        found += [_Column(answer, log, "avg_loss") for answer, log in logs.items()]
        found += [_Column(f"{answer} probability", log, "prob") for answer, log in logs.items()]
        rouge = _TOFU_METRICS[name, "rouge_l_recall"]
        found += [
            _Column("rouge_l_recall", rouge, "rougeL_recall"),
            _Column("generation", rouge, "generation"),
        ]
        found.append(_Column("truth_ratio", _TOFU_METRICS[name, "truth_ratio"], "score"))
        if name not in _WITH_PARAPHRASE:
            found.append(_Column("probability", _TOFU_METRICS[name, "probability"], "prob"))
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
    for name in MUSE_SETS if muse else PREFIXES:
        found = result.sets.get(name, SetResult({}, []))
        of_set = _set_metrics(name, muse)
        entries = _entries(found.rows, [each for each in _columns(name, muse) if each.name not in ATTACKS])
        for log, by_index in entries.items():
            if log not in of_set.values() and log not in _METRICS.values():
                logs[log] = {"agg_value": _mean_probability(by_index), "value_by_index": by_index}
        for metric, log in of_set.items():
            if metric in found.metrics:
                logs[log] = {"agg_value": found.metrics[metric]} | _by_index(entries.get(log))
        if muse and MUSE_SETS[name][0] in result.metrics:
            metric, log = MUSE_SETS[name]
            logs[log] = _by_index(entries.get(log))
    for metric, log in _METRICS.items():
        if metric in result.metrics:
            logs[log] = {"agg_value": result.metrics[metric]} | logs.get(log, {})
        else:
            logs.pop(log, None)
    for attack, log in ATTACKS.items():
        sides = {name: result.sets[name].rows for name in (FORGET, HOLDOUT) if name in result.sets}
        scores = {
            name: {"agg_value": fmean(row[attack] for row in rows if attack in row)} | _by_index(entries[log])
            for name, rows in sides.items()
            if log in (entries := _entries(rows, [_Column(attack, log, "score")]))
        }
        if log in logs and len(scores) == 2:
            logs[log] = scores | {"auc": logs[log]["agg_value"]} | logs[log]
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
        for made in ("truth_ratio", "probability"):
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
    if value is None or field == "generation":
        return value
    return [finite(each, where) for each in value] if isinstance(value, list) else finite(value, where)


def _row(number: int, name: str, given: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a row as results have it, with truth ratio and probability made from its losses if it has them."""
    original, correct, wrong, ratio = (
        given.pop(key, None) for key in ("original", "correct", "wrong", "truth_ratio")
    )
    probabilities = {
        answer: given.pop(f"{answer} probability", None) for answer in ("original", "correct", "wrong")
    }
    if name in _WITH_PARAPHRASE:
        given["probability"] = probabilities["original"]
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
    flat = {str(row["row"]): _flat(row) for row in rows}
    logs = {
        log: {
            index: {
                column.field: values.get(column.name)
                for column in columns
                if column.log == log and (column.name in values or column.field != "generation")
            }
            for index, values in flat.items()
        }
        for log in {column.log: None for column in columns}
    }
    return {
        log: by_index
        for log, by_index in logs.items()
        if any(value is not None for entry in by_index.values() for value in entry.values())
    }


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a row by the names of `_columns`."""
    nll = row.get("nll", [])
    losses = dict(zip(("original", "correct"), nll, strict=False)) | ({"wrong": nll[2:]} if nll[2:] else {})
    probabilities = {
        f"{answer} probability": [math.exp(-each) for each in value]
        if isinstance(value, list)
        else math.exp(-value)
        for answer, value in losses.items()
    }
    ratio = {"truth_ratio": math.exp(row["log_truth_ratio"])} if "log_truth_ratio" in row else {}
    return {**row, **losses, **probabilities, **ratio}


def _by_index(entries: Mapping[str, Any] | None) -> dict[str, Any]:
    return {} if entries is None else {"value_by_index": entries}


def _mean_probability(by_index: Mapping[str, Any]) -> float:
    values = [entry["prob"] for entry in by_index.values() if entry["prob"] is not None]
    return fmean(fmean(each) if isinstance(each, list) else each for each in values)
