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
    process. Speed is that of the batches of a step. A non-finite loss or gradient ends the run before the optimizer step.

    Waits for the device once a step: losses and gradients are looked at together, and what is logged stays where it is.
    """

    def __init__(self) -> None:
        self._rows: list[str] = []
        self._losses: list[Tensor] = []
        self._tokens: list[Tensor] = []
        self._seconds = self._started = 0.0
        self._has_stepped = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Record the rows of the step and start the clock."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._rows, self._losses, self._tokens, self._seconds = [], [], [], 0.0
            self._has_stepped = False
        self._rows += [f"{kind} rows {list(rows)}" for kind, rows in batch.rows.items()]
        self._started = time.perf_counter()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss of a batch."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Log the gradient norm and the learning rate; raise TrainingError if a loss or the norm is not finite."""
        norm = total_norm(pl_module.parameters())
        # With fp16 the gradient scaler handles overflows: it skips the step and lowers its scale.
        is_scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        watched = [("loss", each) for each in self._losses] + ([] if is_scaled else [("gradient norm", norm)])
        if not torch.stack([each.float() for _, each in watched]).isfinite().all():
            name, value = next((name, each.item()) for name, each in watched if not each.isfinite())
            self._stop(trainer, f"the {name} is {value}")
        pl_module.log("train/gradient_norm", norm)
        pl_module.log("train/learning_rate", _on_host(optimizer.param_groups[0]["lr"]))
        self._has_stepped = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log speed and memory, once a step."""
        self._tokens.append(batch.attention_mask.sum())
        self._seconds += time.perf_counter() - self._started
        if not self._has_stepped:
            return
        tokens = torch.stack(self._tokens).sum()
        pl_module.log("train/tokens_per_second", tokens * (trainer.world_size / self._seconds))
        pl_module.log("train/memory_mib", _on_host(_peak_memory_mib(pl_module.device)))

    def _stop(self, trainer: Trainer, cause: str) -> None:
        raise TrainingError(
            f"{cause} ({NOT_FINITE}) at epoch {trainer.current_epoch}, step {trainer.global_step} "
            f"({'; '.join(self._rows)}): the optimizer step was not made, and any checkpoint is from before it. Lower the "
            "learning rate, clip gradients (trainer.gradient_clip_val 1.0), or look at these rows"
        )


def _on_host(value: float) -> Tensor:
    """Return a scalar in the memory of the host: Lightning copies a number to the device, and waits for it."""
    return torch.tensor(value, device="cpu")


def _peak_memory_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
