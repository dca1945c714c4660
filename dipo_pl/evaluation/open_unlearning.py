"""open-unlearning's TOFU_EVAL.json and TOFU_SUMMARY.json, MUSE_EVAL.json and MUSE_SUMMARY.json, read and written.

Known from its source (https://github.com/locuslab/open-unlearning, `src/evals/base.py`, `src/evals/metrics/*.py`,
`configs/eval/tofu_metrics/*.yaml`): TOFU_EVAL.json is {metric: {"agg_value": number, "value_by_index": {"0": {...}}}},
sorted by name, indented by 4; rows are numbered from 0 in the order of the set and hold `prob` and `avg_loss` (lists
for several answers), `rougeL_recall` and `generation`, or `score`; an attack mia_* holds such an object under `forget`
and `holdout`, and its AUC as `auc` and `agg_value`, 1.0 for a forget set fully recognised. TOFU_SUMMARY.json is
{metric: agg_value}. In MUSE_EVAL.json VerbMem and KnowMem are metrics of ROUGE whose agg_value is the mean of
`rougeL_f1`, and exact memorization and extraction strength are of the passages that VerbMem has continued, not of the
forget set (`configs/eval/muse_metrics/*.yaml`).

Guessed, or seen in files of derived projects only: rows that are null as a whole, several answers as a list of objects,
truth ratios under both spellings (forget_truth_ratio, retain_Truth_Ratio), an agg_value that is no number.
"""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from dipo_pl.errors import InputError
from dipo_pl.evaluation.by_index import finite, in_order, same_rows
from dipo_pl.evaluation.conventions import CONVENTIONS, UTILITY_SETS
from dipo_pl.evaluation.result import EvaluationResult, SetResult
from dipo_pl.metrics.functional import log_truth_ratio, option_probability
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
# MUSE's sets with generations: the figure of each, here and there.
MUSE_SETS = {
    "verbatim": ("forget_verbatim", "forget_verbmem_ROUGE"),
    "forget_questions": ("forget_knowledge", "forget_knowmem_ROUGE"),
    "retain_questions": ("retain_knowledge", "retain_knowmem_ROUGE"),
}

_CONVENTION = CONVENTIONS["open_unlearning"]
_WITH_PARAPHRASE = ("forget", "retain")

# open-unlearning's name of each figure of a set, and of each figure of several.
_SET_FIGURES = {
    ("forget", "probability"): "forget_Q_A_Prob",
    ("retain", "probability"): "retain_Q_A_Prob",
    ("real_authors", "probability"): "ra_Q_A_Prob_normalised",
    ("world_facts", "probability"): "wf_Q_A_Prob_normalised",
    **{(name, "rouge_l_recall"): f"{prefix}_Q_A_ROUGE" for name, prefix in PREFIXES.items()},
    ("forget", "truth_ratio"): "forget_truth_ratio",
    ("retain", "truth_ratio"): "retain_Truth_Ratio",
    ("real_authors", "truth_ratio"): "ra_Truth_Ratio",
    ("world_facts", "truth_ratio"): "wf_Truth_Ratio",
}
_FIGURES = {
    "forget_quality": "forget_quality",
    "model_utility": "model_utility",
    **{f"membership_{name}_auc": key for name, key in ATTACKS.items()},
    "priv_leak": "privleak",
    **dict(MUSE_SETS.values()),
}
_NAMES = {
    key.lower(): key
    for key in (
        *_SET_FIGURES.values(),
        *_FIGURES.values(),
        *MEMORIZATION,
        *(f"{prefix}_Q_A_Prob" for prefix in PREFIXES.values()),
        *(f"{prefix}_Q_A_PERT_Prob" for prefix in PREFIXES.values()),
        *(f"{name}_Q_A_PARA_Prob" for name in _WITH_PARAPHRASE),
    )
}


def is_open_unlearning(given: Mapping[str, Any]) -> bool:
    """Whether parsed JSON is such a file, by its keys."""
    # A line of metrics.jsonl has some of the same names, and its step.
    return "step" not in given and any(key.lower() in _NAMES for key in given)


def parse(given: Mapping[str, Any], source: str) -> EvaluationResult:
    """The result in a TOFU_EVAL.json or MUSE_EVAL.json, or the figures in a summary, whose sets have no rows.

    Figures are those of the file. Truth ratios and probabilities among options are made from the rows' losses where
    it has them: open-unlearning's own go wrong where it skips a row, and are 0 where they are too small. What it
    skipped, a row of the result lacks; metrics that have no counterpart here are left aside. Its exact memorization,
    extraction strength, Min-K%, Min-K%++ and gradient norm leave out an answer's last token, and its extraction
    strength is 1/n, not 0, where all n tokens are wrong.

    Args:
        given: the parsed file.
        source: what to call it in an error.
    Raises:
        InputError: metrics of one set cover different rows; a row's number is not finite, or its truth ratio is not
            that of its losses.
    """
    logs = {_NAMES[key.lower()]: value for key, value in given.items() if key.lower() in _NAMES}
    figures = {
        name: value for name, key in _FIGURES.items() if (value := _figure(logs, key, source)) is not None
    }
    if figures.get("forget_quality"):
        figures["forget_quality_log10_p"] = math.log10(figures["forget_quality"])
    sets = {}
    muse = _is_muse(figures)
    for name in (*PREFIXES, "holdout", *MUSE_SETS):
        found = {
            figure: value
            for (of, figure), key in _set_figures(muse).items()
            if of == name and (value := _figure(logs, key, source)) is not None
        }
        rows = _rows(logs, name, source, name == _memorized(muse))
        if found or rows:
            sets[name] = SetResult(found, rows)
    flat = {
        f"{name}_{figure}": value for name, each in sets.items() for figure, value in each.metrics.items()
    }
    utility_sets = UTILITY_SETS if "model_utility" in figures else ()
    return EvaluationResult(_CONVENTION.name, flat | figures, sets, utility_sets=list(utility_sets))


def evaluation(result: EvaluationResult) -> dict[str, Any]:
    """The result as the object in TOFU_EVAL.json, or MUSE_EVAL.json where it has figures of MUSE.

    What was not measured is left out.

    Raises:
        InputError: the result follows another convention than `open_unlearning`.
    """
    if result.convention != _CONVENTION.name:
        raise InputError(
            f"a result of the convention {result.convention!r} is not what open-unlearning's numbers mean: measure "
            f"with forget_quality.convention {_CONVENTION.name} to write its files"
        )
    logs: dict[str, Any] = {}
    muse = _is_muse(result.metrics)
    for name in MUSE_SETS if muse else PREFIXES:
        if name in result.sets:
            logs |= _set_logs(name, result.sets[name].rows, name == _memorized(muse))
    for (name, figure), key in _set_figures(muse).items():
        if name in result.sets and figure in result.sets[name].metrics:
            logs[key] = {"agg_value": result.sets[name].metrics[figure]} | _without_figure(logs.get(key, {}))
        else:
            logs.pop(key, None)
    for figure, key in _FIGURES.items():
        if figure in result.metrics:
            logs[key] = {"agg_value": result.metrics[figure]} | _without_figure(logs.get(key, {}))
    for attack, key in ATTACKS.items():
        scores = {
            name: {
                "agg_value": fmean(row[attack] for row in rows if attack in row),
                "value_by_index": by_index,
            }
            for name in ("forget", "holdout")
            if (rows := result.sets[name].rows if name in result.sets else [])
            and (by_index := _by_index(rows, partial(_score, name=attack)))
        }
        if key in logs and len(scores) == 2:
            logs[key] = scores | {"auc": logs[key]["agg_value"]} | logs[key]
    return dict(sorted(logs.items()))


def summary(result: EvaluationResult) -> dict[str, float]:
    """The result as the object in TOFU_SUMMARY.json or MUSE_SUMMARY.json.

    Raises:
        InputError: as `evaluation`.
    """
    return {key: value["agg_value"] for key, value in evaluation(result).items()}


def write(result: EvaluationResult, folder: Path) -> list[Path]:
    """Writes both files into a folder; returns their paths.

    Raises:
        InputError: as `evaluation`.
    """
    benchmark = "MUSE" if _is_muse(result.metrics) else "TOFU"
    contents = {f"{benchmark}_EVAL": evaluation(result), f"{benchmark}_SUMMARY": summary(result)}
    for name, content in contents.items():
        write_text(folder / f"{name}.json", json.dumps(content, indent=4))
    return [folder / f"{name}.json" for name in contents]


def _is_muse(figures: Mapping[str, float]) -> bool:
    return any(figure in figures for figure, _ in MUSE_SETS.values())


def _memorized(muse: bool) -> str:
    """The set that exact memorization and extraction strength are of."""
    return "verbatim" if muse else "forget"


def _set_figures(muse: bool) -> dict[tuple[str, str], str]:
    return ({} if muse else _SET_FIGURES) | {(_memorized(muse), name): name for name in MEMORIZATION}


def _figure(logs: Mapping[str, Any], key: str, source: str) -> float | None:
    value = logs.get(key)
    if isinstance(value, Mapping):
        value = value.get("agg_value")
    # Its retain references hold something else than a number as their own Forget Quality.
    return finite(value, f"{source}, {key}") if isinstance(value, int | float) else None


def _rows(logs: Mapping[str, Any], name: str, source: str, memorized: bool) -> list[dict[str, Any]]:
    columns: dict[str, list[Any]] = {}
    by_key: dict[str, list[Any]] = {}

    def add(column: str, log: Any, key: str, read: Callable[[Any, str], Any]) -> None:
        values = log.get("value_by_index") if isinstance(log, Mapping) else None
        if values is not None:
            where = f"{source}, {key}"
            entries = enumerate(in_order(values, where))
            columns[column] = [_read(entry, f"{where}, row {row}", read) for row, entry in entries]
            by_key[key] = columns[column]

    for attack, key in ATTACKS.items():
        scores = logs.get(key)
        if name in ("forget", "holdout") and isinstance(scores, Mapping):
            add(attack, scores.get(name), f"{key}, {name}", _field("score"))
    if memorized:
        for key in MEMORIZATION:
            add(key, logs.get(key), key, _field("score"))
    if name in MUSE_SETS:
        _, rouge = MUSE_SETS[name]
        add("rouge_l_f1", logs.get(rouge), rouge, _field("rougeL_f1"))
        add("generation", logs.get(rouge), rouge, lambda entry, where: entry.get("generation"))
    if name in PREFIXES:
        prefix = PREFIXES[name]
        original, wrong = f"{prefix}_Q_A_Prob", f"{prefix}_Q_A_PERT_Prob"
        correct = f"{prefix}_Q_A_PARA_Prob" if name in _WITH_PARAPHRASE else original
        add("original", logs.get(original), original, _field("avg_loss"))
        add("correct", logs.get(correct), correct, _field("avg_loss"))
        add("wrong", logs.get(wrong), wrong, _losses)
        if name in _WITH_PARAPHRASE:
            add("probability", logs.get(original), original, _field("prob"))
        rouge = f"{prefix}_Q_A_ROUGE"
        add("rouge_l_recall", logs.get(rouge), rouge, _field("rougeL_recall"))
        add("generation", logs.get(rouge), rouge, lambda entry, where: entry.get("generation"))
        skipped = any(None in columns.get(each, []) for each in ("correct", "wrong"))
        for column, key, field, made in (
            ("log_truth_ratio", _SET_FIGURES[name, "truth_ratio"], "score", ("correct", "wrong")),
            ("probability", _SET_FIGURES[name, "probability"], "prob", ("original", "wrong")),
        ):
            # Where a row was skipped, the rows after it stand under wrong numbers.
            if column not in columns and not (skipped and all(each in columns for each in made)):
                add(column, logs.get(key), key, _field(field))
    if not columns:
        return []
    count = same_rows(by_key, f"{source}, {name}")
    return [
        _row(row, name, {key: column[row] for key, column in columns.items()}, source) for row in range(count)
    ]


def _row(number: int, name: str, given: dict[str, Any], source: str) -> dict[str, Any]:
    original, correct, wrong = (given.pop(key, None) for key in ("original", "correct", "wrong"))
    where = f"{source}, {name}, row {number}"
    ratio = given.pop("log_truth_ratio", None)
    row: dict[str, Any] = {"row": number}
    if original is None:
        original = given.get("loss")
    if original is not None:
        row["nll"] = [original] if correct is None or wrong is None else [original, correct, *wrong]
    if correct is not None and wrong:
        try:
            log_ratio = log_truth_ratio([correct], [wrong], epsilon=_CONVENTION.epsilon).item()
            among_options = option_probability([correct], [wrong], epsilon=_CONVENTION.epsilon).item()
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        row["log_truth_ratio"] = log_ratio
        if ratio is not None and not math.isclose(ratio, math.exp(log_ratio), rel_tol=1e-4, abs_tol=1e-9):
            raise InputError(
                f"{where} has a truth ratio of {ratio:.6g} and losses that make {math.exp(log_ratio):.6g}: its rows are "
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


def _read(entry: Any, where: str, read: Callable[[Any, str], Any]) -> Any:
    if entry is None:
        return None
    try:
        return read(entry, where)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} is not what open-unlearning writes ({error!r}): evaluate again") from None


def _field(name: str) -> Callable[[Any, str], float | None]:
    return lambda entry, where: None if entry[name] is None else finite(entry[name], where)


def _losses(entry: Any, where: str) -> list[float] | None:
    """Of one answer or of several, each answer an object or a place in a list."""
    values = [each["avg_loss"] for each in entry] if isinstance(entry, list) else entry["avg_loss"]
    if values is None:
        return None
    return [finite(each, where) for each in (values if isinstance(values, list) else [values])]


def _set_logs(name: str, rows: list[dict[str, Any]], memorized: bool) -> dict[str, Any]:
    made = _muse_columns(name) if name in MUSE_SETS else _tofu_columns(name)
    if memorized:
        made |= {key: partial(_score, name=key) for key in MEMORIZATION}
    logs = {}
    for key, make in made.items():
        by_index = _by_index(rows, make)
        if by_index:
            probabilities = [each["prob"] for each in by_index.values() if each and "prob" in each]
            means = [fmean(each) if isinstance(each, list) else each for each in probabilities]
            logs[key] = ({"agg_value": fmean(means)} if means else {}) | {"value_by_index": by_index}
    return logs


def _muse_columns(name: str) -> dict[str, Callable[[dict[str, Any]], Any]]:
    _, key = MUSE_SETS[name]
    return {key: partial(_rouge, of="rougeL_f1", score="rouge_l_f1")}


def _tofu_columns(name: str) -> dict[str, Callable[[dict[str, Any]], Any]]:
    prefix = PREFIXES[name]

    def losses(place: int) -> Callable[[dict[str, Any]], Any]:
        return lambda row: _probability(row["nll"][place]) if len(row.get("nll", [])) > place else None

    def wrong(row: dict[str, Any]) -> Any:
        values = row.get("nll", [])[2:]
        return {"prob": [math.exp(-each) for each in values], "avg_loss": values} if values else None

    made: dict[str, Callable[[dict[str, Any]], Any]] = {
        f"{prefix}_Q_A_Prob": losses(0),
        f"{prefix}_Q_A_PERT_Prob": wrong,
        f"{prefix}_Q_A_ROUGE": partial(_rouge, of="rougeL_recall", score="rouge_l_recall"),
        _SET_FIGURES[name, "truth_ratio"]: lambda row: (
            {"score": math.exp(row["log_truth_ratio"])} if "log_truth_ratio" in row else None
        ),
    }
    if name in _WITH_PARAPHRASE:
        made[f"{prefix}_Q_A_PARA_Prob"] = losses(1)
    else:
        made[f"{prefix}_Q_A_Prob_normalised"] = lambda row: (
            {"prob": row["probability"]} if "probability" in row else None
        )
    return made


def _without_figure(log: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in log.items() if key != "agg_value"}


def _probability(nll: float) -> dict[str, float]:
    return {"prob": math.exp(-nll), "avg_loss": nll}


def _rouge(row: Mapping[str, Any], of: str, score: str) -> dict[str, Any] | None:
    if score not in row:
        return None
    return {of: row[score]} | ({"generation": row["generation"]} if "generation" in row else {})


def _score(row: Mapping[str, Any], name: str) -> dict[str, float | None]:
    return {"score": row.get(name)}


def _by_index(rows: list[dict[str, Any]], make: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Nothing where no row has it."""
    made = {str(row["row"]): make(row) for row in rows}
    known = (value for each in made.values() if each is not None for value in each.values())
    return made if any(value is not None for value in known) else {}
