"""Callback that shows how far a run has come: one bar over the whole run, or lines with the time in a file."""

import math
import sys
import time
from dataclasses import dataclass
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from dipo_pl.batch import Batch, EvaluationBatch
from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.callbacks.lookup import callbacks_of
from dipo_pl.callbacks.pace import Pace, duration
from dipo_pl.callbacks.status_line import StatusLine
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.signals import interruption

# A shorter bar says less than the number beside it.
SHORTEST_BAR, LONGEST_BAR = 6, 40


@dataclass(frozen=True)
class Schedule:
    """The batches and evaluations that training consists of, as the trainer's settings say.

    Attributes:
        steps: optimizer steps of the whole run.
        epoch: batches of an epoch.
        accumulated: batches of a step.
        every: batches between two evaluations; 0 is none.
        every_epochs: epochs between two that have evaluations; None counts batches from the start of the run.
    """

    steps: int
    epoch: int
    accumulated: int
    every: int
    every_epochs: int | None

    @classmethod
    def of(cls, trainer: Trainer) -> "Schedule | None":
        """Return a trainer's schedule; None if its training has no end or no known number of batches."""
        steps, epoch, every = (
            trainer.estimated_stepping_batches,
            trainer.num_training_batches,
            trainer.val_check_batch,
        )
        if math.isinf(steps) or math.isinf(epoch):
            return None
        evaluated = trainer.enable_validation and every is not None and not math.isinf(every)
        return cls(
            int(steps),
            int(epoch),
            trainer.accumulate_grad_batches,
            int(every) if evaluated and every else 0,
            trainer.check_val_every_n_epoch,
        )

    def batches(self, steps: int) -> int:
        """Return the batches of the first steps; an epoch's last step may have fewer."""
        of_epoch = max(1, math.ceil(self.epoch / self.accumulated))
        return steps // of_epoch * self.epoch + steps % of_epoch * self.accumulated

    def evaluations(self, batches: int) -> int:
        """Return how many evaluations are due within or directly after the first batches."""
        if not self.every:
            return 0
        if self.every_epochs is None:
            return batches // self.every
        epochs, rest = divmod(batches, self.epoch)
        in_epochs = epochs // self.every_epochs * (self.epoch // self.every)
        return in_epochs + (rest // self.every if (epochs + 1) % self.every_epochs == 0 else 0)

    def evaluations_between(self, step: int, last_step: int) -> int:
        """Return how many evaluations follow after a step, with the one that is always made at the end."""
        last = self.batches(last_step)
        due_at_end = self.evaluations(last) > self.evaluations(last - 1)
        return self.evaluations(last) - self.evaluations(self.batches(step)) + (not due_at_end)


class Progress(ProgressBar):
    """Callback that shows step, loss, rows a second and time left on the first rank's standard error.

    An evaluation adds the rows that were measured and the answers that were generated. Time left follows from the speed
    of this start of the run, also where it was resumed; "over" before it means that something of the rest has not been
    timed yet. `trainer.enable_progress_bar false` leaves all of it out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._line = StatusLine(self.text)
        self._enabled = True
        self._phase = "preparing"
        self._started = self._mark = time.monotonic()
        self._schedule: Schedule | None = None
        self.limit: int | None = None
        self._step = 0
        # Read where it is shown: the device is waited for then.
        self._loss: Tensor | None = None
        self._steps, self._trained_rows, self._measured = Pace(), Pace(), Pace()
        self._evaluation: ForgetQuality | None = None
        self._generation = Pace()
        self._ranks = 1
        # Numbers of the current evaluation; without rows there is none. It may be decided late that it generates answers.
        self._rows = self._all_rows = self._answers_if_any = 0
        # Numbers of the evaluations to come.
        self._evaluations_to_come = self._rows_of_each = self._answers_of_each = 0
        self._generated_until_mark = 0.0

    def enable(self) -> None:
        """Show the line from now on."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing from now on."""
        self._enabled = False
        self._line.close()

    @classmethod
    def end_at(cls, trainer: Trainer, step: int) -> None:
        """Tell a trainer's progress, if it shows one, that training ends at a step that the trainer does not know of."""
        for each in callbacks_of(trainer, cls):
            each.limit = step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the line."""
        super().setup(trainer, pl_module, stage)
        self._evaluation, self._ranks = ForgetQuality.of(trainer), trainer.world_size
        self._generation = self._evaluation.queue.pace
        self._enter("preparing")
        if self._enabled:
            self._line.open()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the line."""
        self._line.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the line."""
        self._line.close()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the schedule before the evaluation that precedes training."""
        self._read_schedule(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start at the step at which the run starts or resumes."""
        self._read_schedule(trainer)
        self._enter("training")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count a batch."""
        seconds = self._lap()
        self._steps.add(trainer.global_step - self._step, seconds)
        rows = sum(len(batch.rows.get(kind, ())) for kind in ("forget", "retain"))
        self._trained_rows.add(rows * self._ranks, seconds)
        self._reach(trainer.global_step)
        self._loss = trainer.callback_metrics.get("train/loss")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say at which step training has ended, and how long it took."""
        self._enter("finishing")
        if self._enabled:
            speed = self._trained_rows.per_second
            words = [f"training ended at step {_of(self._step, self._all_steps, ' of ')}"]
            words += [] if speed is None else [f"{speed:.3g} rows/s"]
            rank_zero_info(", ".join(words))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start an evaluation."""
        self._enter("evaluating")
        self._rows = self._all_rows = self._answers_if_any = 0
        if trainer.state.fn != "fit":
            self._evaluations_to_come = 0

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the work of the evaluation."""
        if not self._all_rows:
            self._all_rows, self._answers_if_any = _work(trainer)
            self._rows_of_each = max(self._rows_of_each, self._all_rows)
            self._answers_of_each = max(self._answers_of_each, self._answers_if_any)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EvaluationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the rows of a batch."""
        rows = len(batch.rows) * self._ranks
        self._measured.add(rows, self._lap())
        self._rows = min(self._rows + rows, self._all_rows)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End an evaluation."""
        self._rows = self._all_rows = self._answers_if_any = 0
        in_training = trainer.state.fn == "fit" and not trainer.sanity_checking
        self._enter("training" if in_training else "finishing")

    def text(self, columns: int | None) -> str:
        """Return the line: with a bar for a terminal of `columns`, without one and in more words for None."""
        between = " of " if columns is None else "/"
        what, share = self._place(between)
        parts = [each for each in (*self._details(between), self._time()) if each]
        if columns is None:
            return ", ".join([what, *parts])
        if share is None:
            return f"{what}  {', '.join(parts)}"[:columns]
        end = f" {share:4.0%}  {', '.join(parts)}"
        width = min(columns - len(what) - len(end) - 1, LONGEST_BAR)
        bar = f" {_bar(share, width)}" if width >= SHORTEST_BAR else ""
        return f"{what}{bar}{end}"[:columns]

    def _read_schedule(self, trainer: Trainer) -> None:
        self._schedule = Schedule.of(trainer)
        self._reach(trainer.global_step)

    def _reach(self, step: int) -> None:
        self._step = step
        if self._schedule is not None and self._all_steps is not None:
            self._evaluations_to_come = self._schedule.evaluations_between(step, self._all_steps)

    def _enter(self, phase: str) -> None:
        self._phase, self._started = phase, time.monotonic()
        self._lap()

    def _lap(self) -> float:
        """Return the seconds since the last call, without those in which answers were generated."""
        now, generated = time.monotonic(), self._generation.seconds
        seconds = now - self._mark - (generated - self._generated_until_mark)
        self._mark, self._generated_until_mark = now, generated
        return seconds

    @property
    def _all_steps(self) -> int | None:
        if self._schedule is None:
            return self.limit
        return self._schedule.steps if self.limit is None else min(self.limit, self._schedule.steps)

    @property
    def _all_answers(self) -> int:
        return self._answers_if_any if self._evaluation is not None and self._evaluation.generates else 0

    @property
    def _answers(self) -> int:
        generated = 0 if self._evaluation is None else self._evaluation.queue.answers
        return min(generated * self._ranks, self._all_answers)

    def _place(self, between: str) -> tuple[str, float | None]:
        """Return where the run is, in words and as a share of the whole."""
        if total := self._all_steps:
            return f"step {_of(self._step, total, between)}", min(self._step / total, 1.0)
        work = self._all_rows + self._all_answers
        return self._phase, (self._rows + self._answers) / work if work else None

    def _details(self, between: str) -> list[str]:
        if interruption.received is not None:
            return [f"{interruption.received.name}: ends when this step is saved"]
        if self._all_rows:
            verb = "evaluating " if self._all_steps else ""
            rows = f"{verb}{_of(self._rows, self._all_rows, between)} rows"
            answers = f"{_of(self._answers, self._all_answers, between)} answers"
            return [rows, answers] if self._all_answers else [rows]
        if self._phase != "training":
            return [self._phase] if self._all_steps else []
        loss = "" if self._loss is None else f"loss {float(self._loss):.4g}"
        speed = self._trained_rows.per_second
        return [loss, "" if speed is None else f"{speed:.3g} rows/s"]

    def _time(self) -> str:
        """Return the time left, of which "over" says that a part is unknown; in other phases the time so far."""
        if self._phase not in ("training", "evaluating"):
            return duration(time.monotonic() - self._started)
        to_come = self._evaluations_to_come
        generating = 0 if self._evaluation is None else self._evaluation.generating(to_come)
        rows = self._all_rows - self._rows + to_come * (self._rows_of_each or 1)
        answers = self._all_answers - self._answers + generating * (self._answers_of_each or 1)
        parts = [
            self._steps.seconds_for((self._all_steps or 0) - self._step),
            self._measured.seconds_for(rows),
            self._generation.seconds_for(answers),
        ]
        known = [each for each in parts if each is not None]
        some = len(known) < len(parts)
        if some and sum(known) < 1:
            return "time left unknown"
        return f"{'over ' if some else ''}{duration(sum(known))} left"


def _work(trainer: Trainer) -> tuple[int, int]:
    """Return how many rows an evaluation measures, and to how many it generates answers."""
    evaluation, sets = ForgetQuality.of(trainer), ForgetRetain.of(trainer).evaluation_sets
    limits = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
    rows = answers = 0
    loaders: Any = trainer.val_dataloaders
    for each, loader, limit in zip(sets, loaders, limits, strict=True):
        batches = [*loader.sampler][: int(limit)]
        count = min(sum(map(len, batches)) * trainer.world_size, len(each.rows))
        rows += count
        answers += count if evaluation.new_tokens(each) else 0
    return rows, answers


def _of(done: int, total: int | None, between: str) -> str:
    return str(done) if total is None else f"{done}{between}{total}"


def _bar(share: float, width: int) -> str:
    full, empty = "━─"
    try:
        full.encode(sys.stderr.encoding or "ascii")
    except UnicodeEncodeError:
        full, empty = "#-"
    done = round(share * width)
    return full * done + empty * (width - done)
