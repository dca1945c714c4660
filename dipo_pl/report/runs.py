"""A run as reports see it, read from its folder or from a single evaluation file."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dipo_pl.errors import InputError
from dipo_pl.metrics.result import EvaluationResult, SetResult
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.text import load_yaml

FORGET = "forget"
# What tells one start from another and says nothing of how it was made.
_NAMES_AND_SEEDS = (
    "seed_everything",
    "name",
    "output_dir",
    "config",
    "ckpt_path",
    "checkpoint.dirpath",
    "data.init_args.seed",
    "model.init_args.policy.init_args.seed",
    "model.init_args.policy.init_args.adapter.init_args.seed",
)


class Kind(StrEnum):
    """What a run is for; those that are there to compare with are never marked as best."""

    BEFORE = "before unlearning"
    TARGET = "target"
    RETAIN_ONLY = "retain-only"
    UNLEARNED = "unlearned"
    MEASURED = "measured"
    RELEARNED = "relearned"
    QUANTIZED = "quantised"
    FILE = "evaluation file"

    @property
    def competes(self) -> bool:
        return self in (Kind.UNLEARNED, Kind.MEASURED, Kind.FILE)


_PROBES = {"relearning": Kind.RELEARNED, "quantization": Kind.QUANTIZED}
SUSTAINABILITY, SCALABILITY = "sustainability", "scalability"


class Place(NamedTuple):
    """Where a run stands in a sequence of requests.

    Attributes:
        mode: `sustainability`, each stage from the model before, or `scalability`, each from the first one.
        stage: from 1 on.
        requests: names of the forget sets that were asked for until then, one a stage.
    """

    mode: str
    stage: int
    requests: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """The figures of one evaluation."""

    epoch: float | None
    step: int | None
    metrics: dict[str, float]
    utility_sets: tuple[str, ...]

    @property
    def utility_parts(self) -> frozenset[str]:
        """What Model Utility is a mean of; generations are made seldom, so it may differ from point to point."""
        parts = ("probability", "rouge_l_recall", "truth_ratio")
        return frozenset(
            f"{name}_{part}"
            for name in self.utility_sets
            for part in parts
            if f"{name}_{part}" in self.metrics
        )

    def like(self, parts: frozenset[str]) -> dict[str, float]:
        """The figures, without Model Utility where it is known to be made of other parts."""
        return {
            key: value
            for key, value in self.metrics.items()
            if key != "model_utility" or self.utility_parts in (frozenset(), parts)
        }


@dataclass(frozen=True)
class Run:
    """What reports show of a run.

    Attributes:
        name: of its folder (of a stage, after that of its sequence) or file, made different from those of the other runs.
        result: the evaluation that speaks for it: of the exported weights, else the last one.
        first: the evaluation before any step of training, if there was one.
        generated: the latest evaluation that holds generations, if there is one.
        points: all evaluations, in order.
        manifest, config: as in the folder; empty for a single file.
        place: in a sequence of requests; None where it is no stage of one.
    """

    name: str
    path: Path
    kind: Kind
    result: EvaluationResult
    points: tuple[Point, ...]
    first: EvaluationResult | None = None
    generated: EvaluationResult | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    place: Place | None = None

    @property
    def chosen(self) -> Point:
        """The figures of `result`."""
        return next(each for each in reversed(self.points) if each.step == self.result.step)

    @property
    def metrics(self) -> dict[str, float]:
        return self.chosen.metrics

    @property
    def probe(self) -> dict[str, Any]:
        """Of a probe: its kind, the run it probes, and its settings."""
        return dict(self.manifest.get("probe") or {})

    @property
    def retain_result(self) -> Path | None:
        """The retain-only result that its Forget Quality was measured against."""
        given = _at(self.config, "forget_quality", "retain_result")
        return Path(given) if isinstance(given, str) else None

    @property
    def recipe(self) -> str:
        """SHA-256 of the config without names and seeds; runs of equal recipes differ by chance alone."""
        text = json.dumps(_without_names_and_seeds(self.config), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def read_run(path: Path, unfinished: bool = False) -> Run:
    """The run in a folder, or the evaluation in a file (also one of TOFU's or open-unlearning's).

    Args:
        unfinished: take also a run that is still going on or has failed.
    Raises:
        InputError: nothing is there, it is not finished, or it cannot be read.
    """
    try:
        run = _read_folder(RunFolder(path), unfinished) if path.is_dir() else _read_file(path)
        for result in filter(None, (run.first, run.result, run.generated)):
            _check(result)
        if run.result.step not in [each.step for each in run.points]:
            raise InputError(
                f"{path}: its evaluation names the step {run.result.step!r}, not that of its file"
            )
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        raise InputError(f"{path} cannot be read ({_one_line(error)})") from error
    return run


def _read_file(path: Path) -> Run:
    from dipo_pl.evaluation.retain_result import read_result

    result = read_result(path, "the evaluation")
    point = Point(result.epoch, result.step, _figures(result.metrics), tuple(result.utility_sets))
    return Run(printable(path.stem), path, Kind.FILE, result, (point,), generated=_if_generated(result))


def _read_folder(folder: RunFolder, unfinished: bool) -> Run:
    if not folder.manifest.is_file():
        raise InputError(f"{folder.path} is not a run folder: it has no {folder.manifest.name}")
    manifest = _mapping(folder.manifest, json.loads)
    status = manifest.get("status")
    if status != "finished" and not unfinished:
        raise InputError(
            f"{folder.path} is not finished (status: {_one_line(status)}): let it finish, or give --unfinished"
        )
    config = _mapping(folder.config, load_yaml) if folder.config.is_file() else {}
    records = folder.read_metrics()
    if not records:
        raise InputError(f"{folder.path} holds no evaluation: {folder.metrics.name} is missing or empty")
    steps = [each["step"] for each in records]
    if not all(isinstance(each, int) for each in steps) or steps != sorted(set(steps)):
        raise InputError(f"{folder.metrics} holds steps that do not rise one by one ({steps[:5]})")
    points = tuple(
        Point(_number(each.get("epoch")), each["step"], _figures(each), tuple(each.get("utility_sets", ())))
        for each in records
    )
    kind = _kind(manifest, config)
    place = _place(manifest) if kind is Kind.UNLEARNED else None
    name = printable(folder.path.resolve().name)
    step = folder.final_step or 0
    result = EvaluationResult.read(folder.evaluation_file(step))
    first = None
    if records[0]["step"] == 0:
        first = result if step == 0 else EvaluationResult.read(folder.evaluation_file(0))
    return Run(
        name if place is None else f"{printable(folder.path.resolve().parent.name)}/{name}",
        folder.path,
        kind,
        result,
        points,
        first,
        _latest_generated(folder, result, [each["step"] for each in records if each["step"] < step]),
        manifest,
        config,
        place,
    )


def _place(manifest: dict[str, Any]) -> Place | None:
    given = manifest.get("sequence")
    if given is None:
        return None
    if not isinstance(given, dict):
        raise InputError(f"sequence is {_one_line(given)}, no stage of one")
    mode, stage, requests = (given.get(each) for each in ("mode", "stage", "requests"))
    if mode not in (SUSTAINABILITY, SCALABILITY):
        raise InputError(
            f"sequence.mode is {_one_line(repr(mode))}, neither {SUSTAINABILITY} nor {SCALABILITY}"
        )
    if not isinstance(requests, list) or not requests or not all(isinstance(each, str) for each in requests):
        raise InputError(f"sequence.requests is {_one_line(requests)}, no list of names")
    if type(stage) is not int or stage != len(requests):
        raise InputError(f"sequence.stage is {_one_line(stage)}, and {len(requests)} requests have been made")
    return Place(mode, stage, tuple(map(printable, requests)))


def _kind(manifest: dict[str, Any], config: dict[str, Any]) -> Kind:
    probe = manifest.get("probe")
    if probe:
        if probe.get("kind") not in _PROBES:
            raise InputError(f"probe.kind is {probe.get('kind')!r}, which is none of {', '.join(_PROBES)}")
        if not isinstance(probe.get("of"), str):
            raise InputError(f"probe.of is {probe.get('of')!r}, no folder")
        if not isinstance(probe.get("bits", 0), int):
            raise InputError(f"probe.bits is {probe['bits']!r}, no whole number")
        return _PROBES[probe["kind"]]
    if manifest.get("command") == "validate":
        return Kind.MEASURED
    trained_on = _at(config, "data", "init_args", "train_on")
    return {"all": Kind.TARGET, "retain": Kind.RETAIN_ONLY}.get(trained_on or "", Kind.UNLEARNED)


def _latest_generated(
    folder: RunFolder, result: EvaluationResult, earlier: Sequence[int]
) -> EvaluationResult | None:
    if _if_generated(result):
        return result
    for step in reversed(earlier):
        if found := _if_generated(EvaluationResult.read(folder.evaluation_file(step))):
            return found
    return None


def _if_generated(result: EvaluationResult) -> EvaluationResult | None:
    rows = (row for each in result.sets.values() for row in each.rows)
    return result if any(row.get("generation") is not None for row in rows) else None


def _check(result: EvaluationResult) -> None:
    for name, measured in result.sets.items():
        if not measured.rows and not measured.metrics:
            raise InputError(f"the set {name!r} holds nothing")
        for index, row in enumerate(measured.rows):
            for key, value in row.items():
                if key in ("row", "question", "generation"):
                    continue
                several = key in ("nll", "answers")
                known = isinstance(value, list) if several else isinstance(value, int | float)
                numbers = [] if key == "answers" or not known else value if several else [value]
                if not known or not all(math.isfinite(each) for each in numbers):
                    raise InputError(f"{key} of row {index} of the set {name!r} is {_one_line(value)}")


def scores(measured: SetResult | None, name: str) -> list[float] | None:
    """One value of every row of a set; None where some row has none. `loss` is that of the original answer."""
    if measured is None or not measured.rows:
        return None
    found = [(row.get("nll") or [None])[0] if name == "loss" else row.get(name) for row in measured.rows]
    values = [float(each) for each in found if each is not None]
    return values if len(values) == len(found) else None


def of_other_rows(one: Run, other: Run) -> bool:
    """Whether what two runs were to forget is known to differ, so that their figures of it do not compare."""
    known = [each.result.sets[FORGET].fingerprint for each in (one, other) if FORGET in each.result.sets]
    return len(known) == 2 and None not in known and known[0] != known[1]


def with_different_names(runs: Sequence[Run]) -> list[Run]:
    """Puts as many of the parent folders' names before each name as it takes to tell them apart."""
    named = list(runs)
    for _ in range(20):
        repeated = [each for each in named if sum(other.name == each.name for other in named) > 1]
        if not repeated:
            break
        for index, run in enumerate(named):
            parents, said = run.path.resolve().parents, run.name.count("/")
            if run in repeated and said < len(parents):
                named[index] = replace(run, name=f"{printable(parents[said].name)}/{run.name}")
    return named


def printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)


def _figures(given: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in given.items()
        if name not in ("epoch", "step")
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _mapping(path: Path, load: Callable[[str], Any]) -> dict[str, Any]:
    try:
        content = load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read ({_one_line(error)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} cannot be read (it holds no keys)")
    return content


def _without_names_and_seeds(config: Any, key: str = "") -> Any:
    if not isinstance(config, dict):
        return config
    paths = {name: f"{key}.{name}".lstrip(".") for name in config}
    return {
        name: _without_names_and_seeds(config[name], path)
        for name, path in paths.items()
        if path not in _NAMES_AND_SEEDS
    }


def _at(config: Any, *keys: str) -> Any:
    for each in keys:
        config = config.get(each) if isinstance(config, dict) else None
    return config


def _one_line(value: object) -> str:
    return " ".join(str(value).split())[:200]
