"""Reader of run folders and evaluation files. Both may be damaged, unfinished or from a stranger."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from dipo_pl.errors import InputError
from dipo_pl.metrics.result import EvaluationResult
from dipo_pl.report.columns import MEMBERSHIP_SCORES
from dipo_pl.report.run import MODES, Evaluation, Kind, Run, StageEntry, lookup, printable
from dipo_pl.report.verdicts import read_verdict
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.text import load_yaml

_PROBES = {"relearning": Kind.RELEARNED, "quantization": Kind.QUANTIZED}
# Values of a row that reports use; their numbers have been checked to be finite.
_KINDS: dict[str, Any] = dict.fromkeys(("nll", "answers"), list)
_KINDS |= dict.fromkeys(
    ("log_truth_ratio", "probability", "rouge_l_recall", "rouge_l_f1", *MEMBERSHIP_SCORES), (int, float)
)
_KINDS |= dict.fromkeys(("question", "generation"), (str, type(None)))


def read_run(path: Path, unfinished: bool = False) -> Run:
    """Return the run in a folder or the evaluation in a file, also one of TOFU or open-unlearning.

    Raises:
        InputError: nothing is there, the run is not finished, or its files are damaged.
    """
    try:
        run = _read_folder(RunFolder(path), unfinished) if path.is_dir() else _read_file(path)
        for result in filter(None, (run.first, run.result, run.generated)):
            _check(result)
        if run.result.step not in [each.step for each in run.evaluations]:
            raise InputError(
                f"{path}: the evaluation of its result is of step {run.result.step!r}, not of its file's"
            )
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except Exception as error:
        # Damaged content can fail in any way.
        raise InputError(f"{path} cannot be read ({_one_line(error)})") from error
    return run


def distinct_names(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with as many parent folders in each name as it takes to tell them apart."""
    named = list(runs)
    for _ in range(20):
        names = [each.name for each in named]
        repeated = [index for index, name in enumerate(names) if names.count(name) > 1]
        if not repeated:
            break
        for index in repeated:
            run = named[index]
            parents, shown = run.path.resolve().parents, run.name.count("/")
            if shown < len(parents):
                named[index] = replace(run, name=f"{printable(parents[shown].name)}/{run.name}")
    return named


def _read_file(path: Path) -> Run:
    # Imports torch, which a report of run folders does not need.
    from dipo_pl.evaluation.retain_result import read_result

    result = read_result(path, "the evaluation")
    evaluation = Evaluation(result.epoch, result.step, _numbers(result.metrics), tuple(result.utility_sets))
    generated = result if _has_generations(result) else None
    return Run(printable(path.stem), path, Kind.FILE, result, (evaluation,), generated=generated)


def _read_folder(folder: RunFolder, unfinished: bool) -> Run:
    if not folder.manifest.is_file():
        raise InputError(f"{folder.path} is not a run folder (it has no {folder.manifest.name})")
    manifest = _mapping(folder.manifest, json.loads)
    status = manifest.get("status")
    if status != "finished" and not unfinished:
        if status is None:
            raise InputError(
                f"{folder.path} has no status, so it cannot be told whether it finished (a script's run has none): "
                "give --unfinished to include it"
            )
        raise InputError(
            # The cause of a failure may show a value of a row.
            f"{folder.path} is not finished (status: {_one_line(status).partition(':')[0]}): wait for it, or give "
            "--unfinished"
        )
    config = _mapping(folder.config, load_yaml) if folder.config.is_file() else {}
    records = folder.read_metrics()
    if (step := folder.final_step) is None:
        raise InputError(
            f"{folder.path} has {folder.lack}: evaluate its model with dipo-pl validate, and give that run's folder"
        )
    steps = [each["step"] for each in records]
    if steps != sorted(set(steps)):
        raise InputError(f"the steps in {folder.metrics} must increase from line to line (got {steps[:5]})")
    read_verdict(manifest)
    kind = _kind(manifest, config)
    stage = _stage(manifest.get("sequence")) if kind is Kind.UNLEARNING else None
    name = printable(folder.path.resolve().name)
    result = EvaluationResult.read(folder.evaluation_file(step))
    first = None
    if steps[0] == 0:
        first = result if step == 0 else EvaluationResult.read(folder.evaluation_file(0))
    earlier = (EvaluationResult.read(folder.evaluation_file(each)) for each in reversed(steps) if each < step)
    return Run(
        name if stage is None else f"{printable(folder.path.resolve().parent.name)}/{name}",
        folder.path,
        kind,
        result,
        tuple(map(_evaluation, records)),
        first,
        next((each for each in chain([result], earlier) if _has_generations(each)), None),
        manifest,
        config,
        stage,
    )


def _evaluation(record: dict[str, Any]) -> Evaluation:
    epoch = record.get("epoch")
    epoch = None if epoch is None else float(epoch)
    return Evaluation(epoch, record["step"], _numbers(record), tuple(record.get("utility_sets", ())))


def _kind(manifest: dict[str, Any], config: dict[str, Any]) -> Kind:
    probe = manifest.get("probe")
    if probe:
        _expect(probe.get("kind") in _PROBES, "probe.kind", f"one of {', '.join(_PROBES)}", probe.get("kind"))
        _expect(isinstance(probe.get("of"), str), "probe.of", "the name of a folder", probe.get("of"))
        _expect(isinstance(probe.get("bits", 0), int), "probe.bits", "a whole number", probe.get("bits"))
        return _PROBES[probe["kind"]]
    if manifest.get("command") == "validate":
        return Kind.MEASURED
    train_on = lookup(config, "data", "init_args", "train_on")
    return {"all": Kind.TARGET, "retain": Kind.RETAIN_ONLY}.get(train_on or "", Kind.UNLEARNING)


def _stage(given: Any) -> StageEntry | None:
    if given is None:
        return None
    _expect(isinstance(given, dict), "sequence", "a mapping", given)
    mode, number, requests = (given.get(each) for each in ("mode", "stage", "requests"))
    _expect(mode in MODES, "sequence.mode", " or ".join(MODES), mode)
    named = isinstance(requests, list) and requests and all(isinstance(each, str) for each in requests)
    _expect(named, "sequence.requests", "a list of names", requests)
    count, fits = len(requests), type(number) is int and number == len(requests)
    _expect(fits, "sequence.stage", f"{count}, the number of requests", number)
    return StageEntry(mode, number, tuple(map(printable, requests)))


def _has_generations(result: EvaluationResult) -> bool:
    return any(row.get("generation") is not None for each in result.sets.values() for row in each.rows)


def _check(result: EvaluationResult) -> None:
    for name, measured in result.sets.items():
        if not measured.rows and not measured.metrics:
            raise InputError(f"the set {name!r} is empty")
        for index, row in enumerate(measured.rows):
            for key in row.keys() & _KINDS.keys():
                # The value may be a text that was to be forgotten.
                if not isinstance(row[key], _KINDS[key]):
                    raise InputError(f"{key} of {name} row {index} must not be a {type(row[key]).__name__}")


def _expect(fits: Any, key: str, what: str, value: Any) -> None:
    if not fits:
        raise InputError(f"{key} must be {what} (got {_one_line(value)})")


def _numbers(given: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in given.items()
        if name not in ("epoch", "step") and type(value) in (int, float) and math.isfinite(value)
    }


def _mapping(path: Path, load: Callable[[str], Any]) -> dict[str, Any]:
    try:
        content = load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read ({_one_line(error)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} cannot be read (it must hold keys and values)")
    return content


def _one_line(value: object) -> str:
    return " ".join(str(value).split())[:200]
