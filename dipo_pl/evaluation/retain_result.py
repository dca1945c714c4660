"""What a model that never saw the forget set makes of it: found, read, and shown to be comparable."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dipo_pl.errors import InputError
from dipo_pl.evaluation import open_unlearning, tofu_logs
from dipo_pl.evaluation.by_index import finite
from dipo_pl.evaluation.published_results import published, published_names
from dipo_pl.evaluation.result import EvaluationResult, SetResult
from dipo_pl.rows import Row
from dipo_pl.storage.fingerprints import rows_fingerprint
from dipo_pl.storage.run_folder import RunFolder

KEY = "forget_quality.retain_result"
_FORGET = "forget"


def read_result(path: str | Path, key: str = KEY) -> EvaluationResult:
    """A result of this package or another's, told apart by what is in the file.

    Args:
        path: the folder of a finished run (the evaluation of its exported weights, else its last), one of its
            evaluation files, open-unlearning's TOFU_EVAL.json or MUSE_EVAL.json, TOFU's aggregated log, whole or
            reduced, or the name of a published result.
        key: of the configuration, to name in an error.
    Raises:
        InputError: there is no such thing, it is unfinished or empty, or it is something else.
    """
    file = Path(path)
    if not file.exists():
        if str(path) in published_names():
            return published(str(path))
        raise InputError(
            f"{key} {path} does not exist: give the run folder{' of a retain-only model' if key == KEY else ''}, one of "
            "its evaluation files, "
            "open-unlearning's TOFU_EVAL.json or MUSE_EVAL.json, TOFU's aggregated log, or one of "
            f"{', '.join(published_names())}"
        )
    if file.is_dir():
        file = _evaluation_of(RunFolder(file), key)
    try:
        given: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{key} {path} lacks the evaluation {file}: measure that model again") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{key} {file} is not an evaluation: it cannot be read ({error})") from None
    source = f"{key} {file}"
    if isinstance(given, dict) and "sets" in given:
        if "convention" not in given:
            raise InputError(
                f"{source} does not name its convention, as results of older versions: measure that model again"
            )
        try:
            return EvaluationResult.read(file)
        except InputError as error:
            raise InputError(f"{key} {error}") from None
    for format, parse in (
        (tofu_logs.is_tofu_log, tofu_logs.parse),
        (open_unlearning.is_open_unlearning, open_unlearning.parse),
    ):
        if isinstance(given, dict) and format(given):
            try:
                return parse(given, source)
            except InputError:
                raise
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise InputError(
                    f"{source} is not what it looks like ({type(error).__name__}: {error}): give the file as it was written"
                ) from error
    raise InputError(
        f"{source} is not an evaluation: give one of a run's evaluation files, open-unlearning's TOFU_EVAL.json or "
        "MUSE_EVAL.json, or TOFU's aggregated log"
    )


def check_comparable(
    result: EvaluationResult,
    path: str | Path,
    convention: str,
    forget: Sequence[Row],
    settings: Mapping[str, Any],
    key: str = KEY,
) -> None:
    """That a retain-only model's result is of the rows that are measured here, and in the same way.

    Truth ratios are asked for where the rows here have wrong answers to make them of. A result that has figures and no
    rows will do where there are none, if it is of the same corpus.

    Args:
        path: where the result is from.
        convention: that figures follow here.
        forget: the forget rows that are measured here.
        settings: that change figures here, and the `corpus` where it is a named one.
        key: of the configuration, to name in an error.
    Raises:
        InputError: the convention, a setting, the number of forget rows or their fingerprint differs, truth ratios
            are missing, or rows are and the corpus is not known to be the same.
    """
    source = f"{key} {path}"
    if result.convention != convention:
        raise InputError(
            f"{source} follows the convention {result.convention} and this run {convention}, whose numbers mean other "
            f"things: set forget_quality.convention to {result.convention}, or give a result of {convention}"
        )
    found = result.sets.get(_FORGET)
    has_truth_ratios = any(row.wrong_answers for row in forget)
    if found is not None and found.rows:
        _check_rows(found, source, forget)
        if has_truth_ratios:
            _check_truth_ratios(found, source)
    elif has_truth_ratios:
        raise InputError(f"{source} has no forget rows: give a result with every row's truth ratio")
    elif "corpus" not in result.settings.keys() & settings.keys():
        raise InputError(
            f"{source} has no forget rows, and that it is of the corpus here ({settings.get('corpus', 'unnamed')}, there "
            f"{result.settings.get('corpus', 'unnamed')}) is not known: give a retain-only model's run folder"
        )
    if difference := result.other_settings({**settings, "forget_rows": len(forget)}):
        raise InputError(
            f"{source} was measured with another setting ({difference}): give a result of the same, or measure that "
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
            f"{key} {run.path} is a run that measured nothing ({run.metrics.name} has no line): measure its model with "
            "dipo-pl validate, and give that run's folder"
        )
    return run.evaluation_file(step)


def _check_rows(found: SetResult, source: str, forget: Sequence[Row]) -> None:
    count, fingerprint = len(forget), rows_fingerprint(forget)
    if len(found.rows) != count:
        raise InputError(
            f"{source} has {len(found.rows)} forget rows and this run measures {count}: figures of different rows say "
            "different things; measure the same ones"
        )
    if found.fingerprint not in (None, fingerprint):
        raise InputError(
            f"{source} was measured on other forget rows (fingerprint {str(found.fingerprint)[:12]}, here "
            f"{fingerprint[:12]}): give the result for this forget set"
        )


def _check_truth_ratios(found: SetResult, source: str) -> None:
    for number, row in enumerate(found.rows):
        if "log_truth_ratio" not in row:
            raise InputError(
                f"{source} has no truth ratio of forget row {number}: measure with wrong answers (perturbed_answer) to "
                "every row"
            )
        finite(row["log_truth_ratio"], f"{source}, truth ratio of forget row {number}")
