"""The checkpoint that a run resumes from, also after a signal."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.errors import InputError
from dipo_pl.signals import Interrupted, interruption
from dipo_pl.storage.run_folder import RunFolder


class LastCheckpoint(Checkpoint):
    """Writes checkpoints/last.ckpt; the same command again resumes from it.

    The one before becomes previous.ckpt, from which a run resumes whose last.ckpt cannot be read. The disk then holds
    two checkpoints, and a third while it is written. A signal to end (see `dipo_pl.signals`) has a checkpoint
    written after the step, or in the midst of the measurement, that it finds the run in.

    Lightning's ModelCheckpoint writes its `last` only together with a best one (from 2.6 on), so with
    nothing to monitor it would leave nothing to resume from.

    Args:
        every_n_epochs: write at the end of each n-th epoch, after it has been measured.
        every_n_steps: write after each n-th optimizer step as well; null writes at epochs alone.
        previous: keep the one before; false has one checkpoint on disk, and a second while it is written.
    """

    def __init__(
        self, every_n_epochs: int = 1, every_n_steps: int | None = None, previous: bool = True
    ) -> None:
        for name, value in {"every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps}.items():
            if value is not None and value < 1:
                raise InputError(f"last_checkpoint.{name} must be at least 1, got {value}")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.previous = previous
        self._step_before = 0
        self._after_measuring = False
        self._measuring = False
        self._last_is_whole = True
        self._resumed_between_epochs = False
        # That all processes know of.
        self._signal = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        resumed = None if trainer.ckpt_path is None else Path(trainer.ckpt_path)
        last = RunFolder.of(trainer).last_checkpoint
        self._last_is_whole = resumed is None or resumed.resolve() == last.resolve()
        if self._resumed_between_epochs:
            # With trainer.max_steps Lightning goes back into the epoch that has ended: where no evaluation is due after
            # its last batch it trains one more, and counts epochs wrongly from there on.
            trainer.fit_loop.epoch_loop.restarting = False
            self._resumed_between_epochs = False
        interruption.defer()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Tells Lightning's loops the place, which they count in batches, on this number of devices."""
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        if epochs["current"]["processed"] > epochs["current"]["completed"]:
            # Saved as an epoch ended: it is over, and the next one starts as in a run that was not cut short.
            self._resumed_between_epochs = True
            for counts in (epochs["current"], epochs["total"]):
                counts["completed"] = counts["processed"]
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        resume_at = ForgetRetain.of(trainer).resume_at
        assert resume_at is not None
        _, done = resume_at
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
        if not stepped:
            return
        self._signal = _received(trainer)
        # The last batch of an epoch is left to the epoch's end, which comes after the measurement.
        if trainer.is_last_batch:
            return
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        ends_here = trainer.should_stop or trainer.global_step == trainer.max_steps
        # Written before an evaluation, a checkpoint would skip it on resume.
        if _is_measured(trainer, batch_idx):
            self._after_measuring = due or ends_here
        elif due or ends_here or self._signal:
            self._save(trainer)
            self._leave()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _trains(trainer):
            self._measuring = True
            if self._signal:
                self._save(trainer)
                self._leave()
            interruption.allow()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # From here on callbacks change what a checkpoint holds of them.
        if _trains(trainer):
            self._measuring = False
            interruption.defer()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._after_measuring:
            self._after_measuring = False
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning ends an epoch that was cut short as well; resumed from here, its rest would be skipped.
        if not trainer.is_last_batch:
            return
        self._signal = _received(trainer)
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if (
            self._signal
            or last
            or trainer.should_stop
            or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        ):
            self._save(trainer)
        self._leave()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        interruption.allow()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Other processes need not be where a checkpoint is written by all of them.
        if (
            isinstance(exception, Interrupted)
            and self._measuring
            and not self._signal
            and trainer.world_size == 1
        ):
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._measuring:
            # As Lightning has it in the first batch of an evaluation, which a resumed run then makes from its start.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            underway = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress |= {"total": underway, "current": dict(underway), "is_last_batch": False}

    def _leave(self) -> None:
        if self._signal:
            raise Interrupted(self._signal)

    def _save(self, trainer: Trainer) -> None:
        run = RunFolder.of(trainer)
        new = run.checkpoints / "next.ckpt"
        trainer.save_checkpoint(new, weights_only=False)
        if trainer.is_global_zero:
            run.replace_checkpoint(new, keep=self.previous and self._last_is_whole)
            if not self.previous:
                run.remove_previous_checkpoint()
        trainer.strategy.barrier()
        self._last_is_whole = True


def _received(trainer: Trainer) -> int:
    """The signal that any process has received; 0 is none."""
    received = torch.tensor(interruption.received or 0, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(received, reduce_op="max"))


def _trains(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _is_measured(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this batch, which is not the last of its epoch."""
    every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if not trainer.enable_validation or every is None or math.isinf(every):
        return False
    if epochs is not None and (trainer.current_epoch + 1) % epochs != 0:
        return False
    done = trainer.fit_loop.epoch_loop.total_batch_idx if epochs is None else batch_idx
    return trainer.should_stop or (done + 1) % int(every) == 0
