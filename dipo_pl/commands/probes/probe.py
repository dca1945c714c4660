"""What makes a run a probe of another: it says so in its manifest, and what it adds to the figures."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule, Trainer

from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.callbacks.manifest import ManifestEntry
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.metrics.truth_ratio import truth_ratio_closeness
from dipo_pl.storage.run_folder import RunFolder


class Probe(ManifestEntry):
    """Gives the manifest its entry `probe`.

    Args:
        of: folder of the run that is probed.
        weights: their fingerprint.
    """

    entry = "probe"

    def __init__(self, of: str, weights: str | None = None) -> None:
        self.of = of
        self.weights = weights

    @abstractmethod
    def record(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """`kind`, `of`, and what the probe does to the model."""


class Quantized(Probe):
    """The model's weights are rounded to few bits, and it is measured as before."""

    def record(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        module: Any = pl_module
        bits = int(module.policy.quantization.removeprefix("int"))
        return {"kind": "quantization", "of": self.of, "weights": self.weights, "bits": bits}


class Relearning(Probe):
    """The model is fine-tuned on a share of the forget rows.

    What comes of the rows that it is trained on may be learnt anew; what comes of the others was there. Each
    evaluation gets both beside the figures of the whole set: `relearned_METRIC` and `held_back_METRIC`, for
    probability, truth ratio and, where answers were generated, ROUGE-L recall. A part without rows has none, and a
    row that is not itself one of the forget rows (MUSE's texts are parts of them) is in neither.

    Args:
        of, weights: see Probe.
        steps: after which training ends.
    """

    def __init__(self, of: str, steps: int, weights: str | None = None) -> None:
        super().__init__(of, weights)
        self.steps = steps

    def record(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        data = ForgetRetain.of(trainer)
        return {
            "kind": "relearning",
            "of": self.of,
            "weights": self.weights,
            "share": data.forget_share,
            "steps": self.steps,
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Of a run that was killed after its last step.
        trainer.should_stop = trainer.global_step >= self.steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # After the evaluation has been written: what is added takes its place.
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
        figures = {
            f"{part}_{name}": mean for part, rows in parts.items() for name, mean in _means(rows).items()
        }
        replace(result, metrics=result.metrics | figures).save(RunFolder(trainer.default_root_dir))
        for logger in trainer.loggers:
            named = {f"evaluation/{name}": value for name, value in figures.items()}
            logger.log_metrics(named, trainer.global_step)


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of the values that all rows have."""
    names = {"probability", "rouge_l_recall", "log_truth_ratio"}.intersection(*rows) if rows else set()
    values = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in sorted(names)}
    if "log_truth_ratio" in values:
        values["truth_ratio"] = truth_ratio_closeness(values.pop("log_truth_ratio").exp())
    return {name: float(each.mean()) for name, each in values.items()}
