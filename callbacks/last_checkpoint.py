"""Callback that writes the checkpoint that a run resumes from: at epochs, at steps, and after a signal."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.errors import check_count
from dipo_pl.signals import Interrupted, interruption
from dipo_pl.storage.checkpoints import replace_last
from dipo_pl.storage.files import remove
from dipo_pl.storage.run_folder import RunFolder


class LastCheckpoint(Checkpoint):
    """Callback that writes checkpoints/last.ckpt, from which the same command resumes.

    The one before becomes previous.ckpt, from which a run resumes where last.ckpt cannot be read. The disk then holds
    two checkpoints, and a third one while it is written. After a signal to end (see `dipo_pl.signals`) a checkpoint is
    written at the end of the optimizer step, or within the evaluation, in which the signal arrives.

    Lightning's ModelCheckpoint writes its `last` only together with a best one (from 2.6 on): without a monitor there
    would be nothing to resume from.

    Args:
        every_n_epochs: write at the end of each n-th epoch, after its evaluation.
        every_n_steps: write after each n-th optimizer step too; null writes at epochs alone.
        previous: keep the one before; false keeps one checkpoint on disk, and a second one while it is written.

    Raises:
        InputError: `every_n_epochs` or `every_n_steps` is below 1.
    """

    def __init__(
        self, every_n_epochs: int = 1, every_n_steps: int | None = None, previous: bool = True
    ) -> None:
        check_count("last_checkpoint.every_n_epochs", every_n_epochs)
        check_count("last_checkpoint.every_n_steps", every_n_steps)
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.previous = previous
        self._step_before = 0
        self._save_after_evaluation = False
        self._evaluating = False
        # False where the run has resumed from another checkpoint, so that last.ckpt may be damaged.
        self._last_is_readable = True
        self._resumed_between_epochs = False
        # The same on all ranks; 0 is none.
        self._signal = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the end of the step."""
        resumed = None if trainer.ckpt_path is None else Path(trainer.ckpt_path)
        last = RunFolder(trainer.default_root_dir).last_checkpoint
        self._last_is_readable = resumed is None or resumed.resolve() == last.resolve()
        if self._resumed_between_epochs:
            # With trainer.max_steps Lightning goes back into the epoch that has ended: where no evaluation is due after
            # its last batch, it trains on one more batch and counts epochs wrongly from there on.
            trainer.fit_loop.epoch_loop.restarting = False
            self._resumed_between_epochs = False
        interruption.defer()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set the progress of Lightning's loops, which count batches, to that on this number of devices."""
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        if epochs["current"]["processed"] > epochs["current"]["completed"]:
            # Saved at the end of an epoch: the next one starts as in a run that was not interrupted.
            self._resumed_between_epochs = True
            for counts in (epochs["current"], epochs["total"]):
                counts["completed"] = counts["processed"]
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        resume_at = ForgetRetain.of(trainer).resume_at
        assert resume_at is not None
        _, done = resume_at
        moved = done - progress["current"]["ready"]
        for counts in (progress["current"], progress["total"]) if moved else ():
            counts |= {name: count + moved for name, count in counts.items()}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the step."""
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint that is due within an epoch."""
        # Between two optimizer steps there are accumulated gradients, which no checkpoint holds.
        if trainer.global_step == self._step_before:
            return
        self._signal = _received(trainer)
        # After the last batch of an epoch it is written at the end of the epoch, which follows the evaluation.
        if trainer.is_last_batch:
            return
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        ends_here = trainer.should_stop or trainer.global_step == trainer.max_steps
        if _is_evaluated(trainer, batch_idx):
            # Resumed from a checkpoint that is written before the evaluation, a run would skip it.
            self._save_after_evaluation = due or ends_here
        elif due or ends_here or self._signal:
            self._save(trainer)
            self._leave()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal ends the run at once."""
        if _trains(trainer):
            self._evaluating = True
            if self._signal:
                self._save(trainer)
                self._leave()
            interruption.allow()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits again: callbacks change what a checkpoint holds of them."""
        if _trains(trainer):
            self._evaluating = False
            interruption.defer()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint that was due before the evaluation."""
        if self._save_after_evaluation:
            self._save_after_evaluation = False
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint at each n-th epoch, at the last one and after a signal."""
        # Lightning ends an epoch that was interrupted too; resumed from here, a run would skip its rest.
        if not trainer.is_last_batch:
            return
        self._signal = _received(trainer)
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if self._signal or last or trainer.should_stop or epoch % self.every_n_epochs == 0:
            self._save(trainer)
        self._leave()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal ends the run at once."""
        interruption.allow()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write a checkpoint where a signal has interrupted an evaluation, on a single device."""
        # Other ranks need not be where all of them write a checkpoint.
        if (
            isinstance(exception, Interrupted)
            and self._evaluating
            and not self._signal
            and trainer.world_size == 1
        ):
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Have a checkpoint within an evaluation resume at the evaluation's start."""
        if self._evaluating:
            # Lightning's state in the first batch of an evaluation.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            started = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress |= {"total": started, "current": dict(started), "is_last_batch": False}

    def _leave(self) -> None:
        if self._signal:
            raise Interrupted(self._signal)

    def _save(self, trainer: Trainer) -> None:
        run = RunFolder(trainer.default_root_dir)
        new = run.checkpoints / "next.ckpt"
        trainer.save_checkpoint(new, weights_only=False)
        if trainer.is_global_zero:
            replace_last(run, new, keep=self.previous and self._last_is_readable)
            if not self.previous:
                remove(run.previous_checkpoint)
        trainer.strategy.barrier()
        self._last_is_readable = True


def _received(trainer: Trainer) -> int:
    """Return the signal that any rank has received; 0 is none. A collective."""
    own = interruption.received or 0
    if trainer.world_size == 1:
        # Without waiting for the device at every step.
        return own
    received = torch.tensor(own, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(received, reduce_op="max"))


def _trains(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _is_evaluated(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether Lightning validates after this batch, which is not the last one of its epoch."""
    every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if not trainer.enable_validation or every is None or math.isinf(every):
        return False
    if epochs is not None and (trainer.current_epoch + 1) % epochs != 0:
        return False
    done = trainer.fit_loop.epoch_loop.total_batch_idx if epochs is None else batch_idx
    return trainer.should_stop or (done + 1) % int(every) == 0
