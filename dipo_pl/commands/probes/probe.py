"""Callbacks that make a run a probe of another run."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule, Trainer

from dipo_pl.callbacks.forget_quality import ForgetQuality, log_evaluation
from dipo_pl.callbacks.manifest import ManifestEntry
from dipo_pl.callbacks.progress import Progress
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.metrics.truth_ratio import truth_ratio_closeness
from dipo_pl.storage.run_folder import RunFolder


class Probe(ManifestEntry):
    """Base of callbacks that record in the manifest which run is probed.

    Args:
        of: folder of the probed run.
        weights: fingerprint of the probed weights.
    """

    entry = "probe"

    def __init__(self, of: str, weights: str | None = None) -> None:
        self.of = of
        self.weights = weights

    @abstractmethod
    def record(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return `kind`, `of`, `weights`, and the parameters of the probe."""


class Quantized(Probe):
    """Callback that records an evaluation with quantized weights."""

    def record(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the rounding, and its number of bits."""
        module: Any = pl_module
        rounding = module.policy.quantization
        return {
            "kind": "quantization", "of": self.of, "weights": self.weights, "bits": int(rounding[-1]), "rounding": rounding,
        }  # fmt: skip


class Relearning(Probe):
    """Callback that ends a relearning attack after its steps and evaluates trained and held-back rows separately.

    Each evaluation gets the metrics `relearned_METRIC` and `held_back_METRIC` of the forget rows that are trained on
    and of the others, for probability, truth ratio and, where answers were generated, ROUGE-L recall. A part without
    rows has none. An evaluated row that is not a forget row (MUSE's texts are parts of them) is in neither part.

    Args:
        of: folder of the probed run.
        steps: optimizer steps.
        weights: fingerprint of the probed weights.
    """

    def __init__(self, of: str, steps: int, weights: str | None = None) -> None:
        super().__init__(of, weights)
        self.steps = steps

    def record(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return share and steps."""
        attack = {"share": ForgetRetain.of(trainer).forget_share, "steps": self.steps}
        return {"kind": "relearning", "of": self.of, "weights": self.weights, **attack}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a resumed run that has taken all its steps."""
        Progress.end_at(trainer, self.steps)
        # The run may have been killed after its last step.
        trainer.should_stop = trainer.global_step >= self.steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End training after the last step."""
        if trainer.global_step >= self.steps:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the metrics of both parts of the forget rows to the evaluation."""
        # The evaluation has been written; it is written again with more metrics.
        result = ForgetQuality.of(trainer).result
        if result is None or not trainer.is_global_zero:
            return
        data = ForgetRetain.of(trainer)
        forget = data.row_sets.forget
        known = {row.conversation for row in forget}
        trained = {forget[place].conversation for place in data.trained_forget_rows}
        measured = next(each.rows for each in data.evaluation_sets if each.name == "forget")
        parts: dict[str, list[Mapping[str, Any]]] = {"relearned": [], "held_back": []}
        for row, values in zip(measured, result.sets["forget"].rows, strict=True):
            if row.conversation in known:
                parts["relearned" if row.conversation in trained else "held_back"].append(values)
        means = {part: _means(rows) for part, rows in parts.items()}
        metrics = {f"{part}_{name}": mean for part, named in means.items() for name, mean in named.items()}
        replace(result, metrics=result.metrics | metrics).save(RunFolder(trainer.default_root_dir))
        log_evaluation(trainer, metrics, trainer.global_step)


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of each value that all rows have."""
    names = {"probability", "rouge_l_recall", "log_truth_ratio"}.intersection(*rows) if rows else set()
    values = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in sorted(names)}
    if "log_truth_ratio" in values:
        values["truth_ratio"] = truth_ratio_closeness(values.pop("log_truth_ratio"))
    return {name: float(each.mean()) for name, each in values.items()}
