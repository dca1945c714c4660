"""Results that a run is compared with, above all a retain-only model's: read, and checked to be comparable."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dipo_pl.errors import InputError
from dipo_pl.evaluation import open_unlearning, tofu_logs
from dipo_pl.evaluation.by_index import finite
from dipo_pl.evaluation.published_results import published, published_names
from dipo_pl.metrics.base import FORGET, HOLDOUT
from dipo_pl.metrics.result import EvaluationResult, SetResult
from dipo_pl.paths import expanded
from dipo_pl.rows import Row
from dipo_pl.storage.fingerprints import rows_fingerprint
from dipo_pl.storage.run_folder import RunFolder

KEY = "forget_quality.retain_result"

_KINDS = "one of a run's evaluation files, open-unlearning's TOFU_EVAL.json or MUSE_EVAL.json, TOFU's aggregated log"
_FORMATS = (
    (tofu_logs.is_tofu_log, tofu_logs.parse),
    (open_unlearning.is_open_unlearning, open_unlearning.parse),
)


def read_result(path: str | Path, key: str = KEY) -> EvaluationResult:
    """Return a result of this package or of another one, recognized by the content of its file.

    Args:
        path: the folder of a finished run (the evaluation of its exported weights, else its last one), one of its
            evaluation files, open-unlearning's TOFU_EVAL.json or MUSE_EVAL.json, TOFU's aggregated log, whole or
            reduced, or the name of a published result.
        key: the key of the configuration in an error.

    Raises:
        InputError: there is no such thing, it is unfinished or empty, or it is something else.
    """
    file = Path(expanded(str(path)))
    if not file.exists():
        if str(path) in published_names():
            return published(str(path))
        whose = " of a retain-only model" if key == KEY else ""
        raise InputError(
            f"{key} {path} does not exist: give the run folder{whose}, {_KINDS}, or one of {', '.join(published_names())}"
        )
    if file.is_dir():
        file = _evaluation_of(RunFolder(file), key)
    source = f"{key} {file}"
    try:
        given: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{key} {path} lacks the evaluation {file}: evaluate that model again") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{source} is not an evaluation: it cannot be read ({error})") from None
    if isinstance(given, dict) and "sets" in given:
        if "convention" not in given:
            raise InputError(
                f"{source} does not name its convention, as in older versions: evaluate that model again"
            )
        try:
            return EvaluationResult.read(file)
        except InputError as error:
            raise InputError(f"{key} {error}") from None
    for recognizes, parse in _FORMATS:
        if isinstance(given, dict) and recognizes(given):
            try:
                return parse(given, source)
            except InputError:
                raise
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise InputError(
                    f"{source} is not what it looks like ({type(error).__name__}: {error}): give the file as it was "
                    "written"
                ) from error
    raise InputError(f"{source} is not an evaluation: give {_KINDS}")


def comparable_metrics(result: EvaluationResult, holdout: str | None) -> dict[str, float]:
    """Return the metrics of a result that a run's can be compared with: not membership by other holdout rows.

    Args:
        result: the retain-only model's result.
        holdout: fingerprint of the run's holdout rows; None if it measures none.
    """
    theirs = result.sets.get(HOLDOUT)
    same = theirs is None or theirs.fingerprint in (None, holdout)
    return {
        name: value for name, value in result.metrics.items() if same or not name.startswith("membership_")
    }


def check_comparable(
    result: EvaluationResult,
    path: str | Path,
    convention: str,
    forget: Sequence[Row],
    settings: Mapping[str, Any],
    key: str = KEY,
    tokens: str | None = None,
) -> None:
    """Refuse a retain-only model's result on other rows than those evaluated here, or evaluated in another way.

    Truth ratios must be there if the rows here have wrong answers to make them from. A result with metrics and no rows
    will do if the rows have none and it is of the same corpus.

    Args:
        result: the retain-only model's result.
        path: its source, for errors.
        convention: the convention here.
        forget: the forget rows that are evaluated here.
        settings: what else changes values here, and the `corpus` if it has a name.
        key: the key of the configuration in an error.
        tokens: fingerprint of the token ids of the forget rows here. Where it is known on both sides, it takes the place of
            the prompt formats: what these write is what counts.

    Raises:
        InputError: the convention, a setting, the number of forget rows, their fingerprint or tokens differ, truth ratios
            are missing, or rows are missing and the corpus is not known to be the same.
    """
    source = f"{key} {path}"
    if result.convention != convention:
        raise InputError(
            f"{source} follows the convention {result.convention} and this run {convention}, whose values mean other "
            f"things: set forget_quality.convention to {result.convention}, or give a result of {convention}"
        )
    found = result.sets.get(FORGET)
    has_truth_ratios = any(row.wrong_answers for row in forget)
    if found is not None and found.rows:
        _check_rows(found, source, forget)
        if tokens is not None and found.tokens is not None:
            _check_tokens(found.tokens, tokens, source)
            settings = {name: each for name, each in settings.items() if not name.endswith("prompt")}
        if has_truth_ratios:
            _check_truth_ratios(found, source)
    elif has_truth_ratios:
        raise InputError(f"{source} has no forget rows: give a result with every row's truth ratio")
    elif "corpus" not in result.settings.keys() & settings.keys():
        corpora = [each.get("corpus", "unnamed") for each in (settings, result.settings)]
        raise InputError(
            f"{source} has no forget rows, and its corpus is not known to be the same (here {corpora[0]}, there "
            f"{corpora[1]}): give a retain-only model's run folder"
        )
    if difference := result.other_settings({**settings, "forget_rows": len(forget)}):
        raise InputError(
            f"{source} was evaluated with another setting ({difference}): give a result with the same, or evaluate that "
            "model again"
        )


def _evaluation_of(run: RunFolder, key: str) -> Path:
    status = run.read_manifest().get("status")
    if status != "finished":
        raise InputError(
            f"{key} {run.path} is not the folder of a finished run (status: {status}): let that run finish first"
        )
    step = run.final_step
    if step is None:
        raise InputError(
            f"{key} {run.path} has {run.lack}: evaluate its model with dipo-pl validate, and give that run's folder"
        )
    return run.evaluation_file(step)


def _check_rows(found: SetResult, source: str, forget: Sequence[Row]) -> None:
    count, fingerprint = len(forget), rows_fingerprint(forget)
    if len(found.rows) != count:
        raise InputError(
            f"{source} has {len(found.rows)} forget rows and this run {count}: evaluate both on the same rows"
        )
    if found.fingerprint not in (None, fingerprint):
        raise InputError(
            f"{source} was evaluated on other forget rows (fingerprint {str(found.fingerprint)[:12]}, here "
            f"{fingerprint[:12]}): give the result for this forget set"
        )


def _check_tokens(there: str, here: str, source: str) -> None:
    if there != here:
        raise InputError(
            f"{source} was evaluated on other tokens of the forget rows (fingerprint {there[:12]}, here {here[:12]}): "
            "evaluate that model again with this tokenizer, data.prompt and data.max_length"
        )


def _check_truth_ratios(found: SetResult, source: str) -> None:
    for number, row in enumerate(found.rows):
        if "log_truth_ratio" not in row:
            raise InputError(
                f"{source} has no truth ratio of forget row {number}: evaluate with wrong answers (perturbed_answer) of "
                "every row"
            )
        finite(row["log_truth_ratio"], f"{source}, truth ratio of forget row {number}")
