"""Callback that logs speed, memory, learning rate and gradient norm, and ends training at non-finite numbers."""

import resource
import sys
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from dipo_pl.batch import Batch
from dipo_pl.distributed import total_norm
from dipo_pl.errors import NOT_FINITE, TrainingError


class TrainingMonitor(Callback):
    """Callback that logs train/tokens_per_second, train/memory_mib, train/learning_rate and train/gradient_norm.

    The norm is taken before clipping. Memory is the allocator's peak on a GPU, else the peak resident set size of the
    process. A non-finite loss or gradient ends the run before the optimizer step.
    """

    def __init__(self) -> None:
        self._rows: list[str] = []
        self._started = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Record the rows of the step and start the clock."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._rows = []
        self._rows += [f"{kind} rows {list(rows)}" for kind, rows in batch.rows.items()]
        self._started = time.perf_counter()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Refuse a non-finite loss; raise TrainingError if the loss is not finite."""
        if not torch.isfinite(loss):
            self._stop(trainer, f"the loss is {loss.item()}")

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Log the gradient norm and the learning rate; raise TrainingError if the norm is not finite."""
        norm = total_norm(pl_module.parameters())
        # With fp16 the gradient scaler handles overflows: it skips the step and lowers its scale.
        if getattr(trainer.precision_plugin, "scaler", None) is None and not torch.isfinite(norm):
            self._stop(trainer, f"the gradient norm is {norm.item()}")
        pl_module.log("train/gradient_norm", norm)
        pl_module.log("train/learning_rate", optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log speed and memory."""
        tokens = float(batch.attention_mask.sum())
        seconds = time.perf_counter() - self._started
        pl_module.log("train/tokens_per_second", tokens * trainer.world_size / seconds)
        pl_module.log("train/memory_mib", _peak_memory_mib(pl_module.device))

    def _stop(self, trainer: Trainer, cause: str) -> None:
        raise TrainingError(
            f"{cause} ({NOT_FINITE}) at epoch {trainer.current_epoch}, step {trainer.global_step} "
            f"({'; '.join(self._rows)}): the optimizer step was not made, and any checkpoint is from before it. Lower the "
            "learning rate, clip gradients (trainer.gradient_clip_val 1.0), or look at these rows"
        )


def _peak_memory_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
