"""Callback that chooses the checkpoint to keep by a rule, and ends training when no better one is expected."""

import math
from collections.abc import Sequence, Set
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from dipo_pl.callbacks.best_checkpoint import BestCheckpoint
from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.callbacks.lookup import callbacks_of
from dipo_pl.callbacks.needs_answers import NeedsAnswers

# Configs and rules of users, made with earlier versions, name them here.
from dipo_pl.callbacks.selection_rules import NO_RULE, SelectionRule
from dipo_pl.callbacks.selection_rules import BestForgetQuality as BestForgetQuality
from dipo_pl.callbacks.selection_rules import FirstForgotten as FirstForgotten
from dipo_pl.callbacks.selection_rules import LowestForgetProbability as LowestForgetProbability
from dipo_pl.callbacks.selection_rules import NearestToUnseen as NearestToUnseen
from dipo_pl.callbacks.selection_rules import UtilityKept as UtilityKept
from dipo_pl.callbacks.verdict import Judge, wrong_answers
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.errors import InputError, check_objects
from dipo_pl.evaluation.verdict_rules import Metrics
from dipo_pl.storage.fingerprints import settings_fingerprint
from dipo_pl.storage.run_folder import RunFolder


class Selection(NeedsAnswers):
    """Callback that logs each evaluation's score as `selection`, which the best checkpoint and the export follow.

    An evaluation without answers is scored by what was measured. If training would end with it, answers are generated first.

    Args:
        rule: the rule by which a checkpoint is kept; null keeps the last one.
        stop: end training when the rule expects no better score.
    """

    def __init__(self, rule: SelectionRule | None = None, stop: bool = False) -> None:
        check_objects("selection", rule=rule)
        if stop and rule is None:
            raise InputError(
                f"selection.stop is true, but there is no rule: set selection.rule, or give {NO_RULE}"
            )
        self.rule = rule
        self.stop = stop
        # Of the rule's own arguments, before `setup` fills in the rest.
        self._fingerprint = settings_fingerprint(rule)
        self._ended_at: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the step at which the rule has ended training, None if it has not, and its fingerprint."""
        return {"ended_at": self._ended_at, "rule": self._fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the step at which training has ended, if it was by this same rule."""
        same = state_dict["rule"] == self._fingerprint
        self._ended_at = state_dict["ended_at"] if same else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the rule can be applied; raise InputError if a metric that it needs will not be measured."""
        if self.rule is None or stage != "fit":
            return
        module: Any = pl_module
        if "pairs" not in module.trains_on:
            raise InputError(
                f"selection.rule {type(self.rule).__name__} chooses the checkpoint that forgot, and "
                f"{type(module).__name__} makes none forget: give {NO_RULE}"
            )
        self.rule.check(ForgetQuality.of(trainer))
        data = ForgetRetain.of(trainer)
        self.rule.rows = {each.name: len(each.rows) for each in data.evaluation_sets}
        self.rule.forgotten = data.forgotten
        for judge in callbacks_of(trainer, Judge):
            self.rule.thresholds = judge.thresholds
        if (
            trainer.num_sanity_val_steps == 0
            and not RunFolder(trainer.default_root_dir).evaluation_file(0).is_file()
        ):
            raise InputError(
                f"selection.rule {type(self.rule).__name__} needs the evaluation before training: set "
                "trainer.num_sanity_val_steps to -1 (got 0)"
            )

    @property
    def decides(self) -> bool:
        """True if training ends by a rule that scores evaluations without answers."""
        return self.stop and self.rule is not None and not self.rule.needs_answers

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a resumed run that was killed after the evaluation that ends it."""
        if trainer.ckpt_path is None or not (records := ForgetQuality.trajectory(trainer)):
            return
        # The scores may have changed since: the exported checkpoint is measured in full after training.
        if self._ended_at == trainer.global_step or self._ends(self._scores(trainer, records)):
            trainer.should_stop = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the score, and end training if no better one is expected.

        Raises:
            InputError: the rule needs a metric that is not measured.
        """
        evaluation = ForgetQuality.of(trainer).result
        if self.rule is None or trainer.state.fn != "fit" or evaluation is None:
            return
        scores = self._scores(trainer, ForgetQuality.trajectory(trainer))
        if trainer.sanity_checking:
            return
        # A monitor must have a value even if there is no score; see BestCheckpoint.
        pl_module.log("selection", -math.inf if scores[-1] is None else scores[-1], sync_dist=True)
        if end := self._ends(scores):
            rank_zero_info(f"training ends: {end} (selection.rule {type(self.rule).__name__})")
            self._ended_at, trainer.should_stop = trainer.global_step, True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a monitored metric that is not measured, before training instead of after its first epoch.

        Raises:
            InputError: there is such a metric.
        """
        evaluation = ForgetQuality.of(trainer).result
        if trainer.sanity_checking and evaluation is not None:
            _refuse_unknown_monitors(trainer, {*evaluation.metrics, *trainer.callback_metrics})

    def needs_answers(self, trainer: Trainer, metrics: Metrics) -> bool:
        """Return whether training would end with these metrics."""
        earlier = [each for each in ForgetQuality.trajectory(trainer) if each["step"] < trainer.global_step]
        now = {**metrics, "step": trainer.global_step}
        return self._ends(self._scores(trainer, [*earlier, now])) is not None

    def _scores(self, trainer: Trainer, records: Sequence[Metrics]) -> list[float | None]:
        """Return the score of each evaluation, the first of which is the one before training."""
        if self.rule is None or not records:
            return []
        retain = ForgetQuality.of(trainer).retain_metrics
        # Rank 0 alone reads files.
        found: dict[str, float] = {}
        if trainer.is_global_zero:
            found = wrong_answers(RunFolder(trainer.default_root_dir), records[0], self.rule.forgotten)
        self.rule.wrong_answers = trainer.strategy.broadcast(found)
        return [self.rule.score(each, records[0], retain) for each in records]

    def _ends(self, scores: Sequence[float | None]) -> str | None:
        trained = [score for score in scores[1:] if score is not None]
        if self.rule is None or not self.stop or not scores or scores[-1] is None:
            return None
        return self.rule.ends(trained)


def _refuse_unknown_monitors(trainer: Trainer, metrics: Set[str]) -> None:
    for callback in callbacks_of(trainer, Callback):
        monitor = getattr(callback, "monitor", None) or "selection"
        if monitor not in metrics | {"selection"} and not monitor.startswith("train/"):
            is_ours = isinstance(callback, BestCheckpoint)
            name = "checkpoint.monitor" if is_ours else f"the monitor of {type(callback).__name__}"
            raise InputError(
                f"{name} must be a measured metric (got {monitor!r}): give one of {', '.join(sorted(metrics))}"
            )
