"""The checkpoint that a run resumes from."""

import math
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from dipo_pl.errors import InputError
from dipo_pl.run_folder import RunFolder


class LastCheckpoint(Checkpoint):
    """Writes checkpoints/last.ckpt, over the one before; the same command again resumes from it.

    Lightning's ModelCheckpoint writes its `last` only together with a best one (from 2.6 on), so with
    nothing to monitor it would leave nothing to resume from.

    Args:
        every_n_epochs: write at the end of each n-th epoch, after it has been measured.
        every_n_steps: write after each n-th optimizer step as well; null writes at epochs alone.
    """

    def __init__(self, every_n_epochs: int = 1, every_n_steps: int | None = None) -> None:
        for name, value in {"every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps}.items():
            if value is not None and value < 1:
                raise InputError(f"last_checkpoint.{name} must be at least 1, got {value}")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self._step_before = 0
        self._after_measuring = False

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Tells Lightning's loop, which counts batches, the place on this number of devices."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        _, done = data.resume_at
        moved = done - progress["current"]["ready"]
        if moved:
            for counts in (progress["current"], progress["total"]):
                counts |= {name: count + moved for name, count in counts.items()}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Between two optimizer steps gradients have been summed up that no checkpoint holds.
        stepped = trainer.global_step > self._step_before
        # The last batch of an epoch is left to the epoch's end, which comes after the measurement.
        if not stepped or trainer.is_last_batch:
            return
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        ends_here = trainer.should_stop or trainer.global_step == trainer.max_steps
        if not (due or ends_here):
            return
        # Written before an evaluation, a checkpoint would skip it on resume.
        if _is_measured(trainer, batch_idx):
            self._after_measuring = True
        else:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._after_measuring:
            self._after_measuring = False
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning ends an epoch that was cut short as well; resumed from here, its rest would be skipped.
        complete = trainer.is_last_batch
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if complete and (last or (trainer.current_epoch + 1) % self.every_n_epochs == 0):
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(RunFolder.of(trainer).last_checkpoint, weights_only=False)


def _is_measured(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this batch, which is not the last of its epoch."""
    every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if not trainer.enable_validation or every is None or math.isinf(every):
        return False
    if epochs is not None and (trainer.current_epoch + 1) % epochs != 0:
        return False
    done = trainer.fit_loop.epoch_loop.total_batch_idx if epochs is None else batch_idx
    return trainer.should_stop or (done + 1) % int(every) == 0
