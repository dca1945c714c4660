"""A run as reports see it: its role, what was measured, and what produced it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from dipo_pl.metrics.result import EvaluationResult

FORGET = "forget"
# Each stage starts from the model of the stage before, or all from the first model.
MODES = SUSTAINABILITY, SCALABILITY = "sustainability", "scalability"
_UTILITY_PARTS = ("probability", "rouge_l_recall", "truth_ratio")
# Settings that name a run or seed it, and do not change the method.
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
    """Role of a run in a report."""

    BEFORE = "before unlearning"
    TARGET = "target"
    RETAIN_ONLY = "retain-only"
    UNLEARNING = "unlearning"
    MEASURED = "measured"
    RELEARNED = "relearned"
    QUANTIZED = "quantized"
    FILE = "evaluation file"

    @property
    def competes(self) -> bool:
        """True if the run may be marked as best; the others are there for comparison."""
        return self in (Kind.UNLEARNING, Kind.MEASURED, Kind.FILE)

    @property
    def meaning(self) -> str:
        """What a reference model is."""
        texts = {
            Kind.TARGET: "target: knows what is to be forgotten",
            Kind.RETAIN_ONLY: "retain-only: never saw it",
            Kind.BEFORE: "before unlearning",
        }
        return texts.get(self, str(self))

    @property
    def purpose(self) -> str:
        """What a run without a verdict is there for."""
        if self in (Kind.RELEARNED, Kind.QUANTIZED):
            return "attack"
        return "" if self.competes else "reference"


class StageEntry(NamedTuple):
    """Position, from 1, of a run in a sequence of requests, and the forget sets requested so far, one a stage."""

    mode: str
    number: int
    requests: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one evaluation."""

    epoch: float | None
    step: int | None
    metrics: dict[str, float]
    utility_sets: tuple[str, ...]

    @property
    def utility_parts(self) -> frozenset[str]:
        """Metrics that Model Utility is the mean of; it varies, since answers are not generated at every evaluation."""
        names = (f"{name}_{part}" for name in self.utility_sets for part in _UTILITY_PARTS)
        return frozenset(name for name in names if name in self.metrics)

    def comparable(self, parts: frozenset[str]) -> dict[str, float]:
        """Return the metrics, without Model Utility if it is known to be made of other parts."""
        keep = self.utility_parts in (frozenset(), parts)
        return {key: value for key, value in self.metrics.items() if keep or key != "model_utility"}


@dataclass(frozen=True)
class Run:
    """A run with its evaluations.

    Attributes:
        name: name of the folder or file, with parent folders where that is needed to tell runs apart.
        result: evaluation of the exported weights, else the last one.
        evaluations: metrics of all evaluations, in order.
        first: evaluation before the first training step, if there is one.
        generated: latest evaluation with generated answers, if there is one.
        manifest: content of manifest.json; empty for an evaluation file.
        config: content of config.yaml; empty for an evaluation file.
        stage: position in a sequence of requests, if it is part of one.
    """

    name: str
    path: Path
    kind: Kind
    result: EvaluationResult
    evaluations: tuple[Evaluation, ...]
    first: EvaluationResult | None = None
    generated: EvaluationResult | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    stage: StageEntry | None = None

    @property
    def chosen(self) -> Evaluation:
        """Metrics of `result`."""
        return next(each for each in reversed(self.evaluations) if each.step == self.result.step)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of `result`, by name."""
        return self.chosen.metrics

    @property
    def probe(self) -> dict[str, Any]:
        """Kind, attacked run and settings of a relearning or quantization attack; empty for other runs."""
        return dict(self.manifest.get("probe") or {})

    @property
    def bits(self) -> int:
        """Bits of a quantized weight; 0 for every other run."""
        return int(self.probe.get("bits", 0))

    @property
    def rounding(self) -> str:
        """Rounding of a quantized model's weights, such as int8 or nf4; empty for every other run."""
        return printable(str(self.probe.get("rounding") or (f"int{self.bits}" if self.bits else "")))

    @property
    def retain_result(self) -> Path | None:
        """Retain-only result that Forget Quality was measured against."""
        given = lookup(self.config, "forget_quality", "retain_result")
        return Path(given) if isinstance(given, str) else None

    @property
    def recipe(self) -> str:
        """SHA-256 of the config without names and seeds; runs with equal recipes are repetitions."""
        return recipe_of(self.config)

    def is_at(self, path: str | Path | None) -> bool:
        """Return True if `path` names the folder or file of this run."""
        return path is not None and self.path.resolve() == Path(path).resolve()

    def scores(self, name: str, of: str = FORGET) -> list[float]:
        """Return a value of every row of a set, such as `loss` (of the true answer); nothing if a row has none."""
        rows = self.result.sets[of].rows if of in self.result.sets else []
        found = [(row.get("nll") or [None])[0] if name == "loss" else row.get(name) for row in rows]
        values = [float(each) for each in found if each is not None]
        return values if len(values) == len(rows) else []


def recipe_of(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a config without names and seeds."""
    text = json.dumps(_without_names_and_seeds(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def lookup(tree: Any, *keys: str) -> Any:
    """Return the value at a path of keys in nested mappings; None if there is none."""
    for each in keys:
        tree = tree.get(each) if isinstance(tree, Mapping) else None
    return tree


def printable(text: str) -> str:
    """Return the text with control characters and line breaks as question marks."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _without_names_and_seeds(config: Any, prefix: str = "") -> Any:
    if not isinstance(config, Mapping):
        return config
    kept = [name for name in config if f"{prefix}{name}" not in _NAMES_AND_SEEDS]
    return {name: _without_names_and_seeds(config[name], f"{prefix}{name}.") for name in kept}
