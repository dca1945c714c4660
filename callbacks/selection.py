"""Which checkpoint is the one to keep, and when to stop looking."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.errors import InputError
from dipo_pl.storage.run_folder import RunFolder

Figures = Mapping[str, Any]


_NO_UTILITY = (
    "selection.rule BestForgetQuality needs Model Utility, which is not measured: see forget_quality.utility_sets and "
    "forget_quality.generate_every"
)


class SelectionRule(ABC):
    """Scores each evaluation; the checkpoint of the first one with the highest score is kept."""

    @abstractmethod
    def score(self, figures: Figures, target: Figures, retain: Figures | None) -> float | None:
        """Of one evaluation; None where it lacks a figure that the rule needs.

        Args:
            figures: of the evaluation.
            target: of the model before training.
            retain: of the retain-only model; None where no result of one is given.
        Raises:
            InputError: what the rule needs is never measured in this run.
        """

    def check(self, measuring: ForgetQuality) -> None:
        """What can be said before anything is measured.

        Raises:
            InputError: as `score`.
        """
        if measuring.retain is None:
            raise InputError(
                f"selection.rule {type(self).__name__} needs a retain-only model: give its result as "
                "forget_quality.retain_result"
            )

    @abstractmethod
    def ends(self, scores: Sequence[float]) -> bool:
        """Whether nothing better is expected after these scores, one an evaluation that had one."""


class BestForgetQuality(SelectionRule):
    """The best Forget Quality among evaluations that keep Model Utility; if none does, the most useful one.

    The score is log10 of Forget Quality, and where utility is lost -1e6 less the share that is missing.

    Args:
        utility_share: of the target's Model Utility that must be kept, in (0, 1].
        patience: evaluations without a better score after which to stop looking.
    """

    def __init__(self, utility_share: float = 0.95, patience: int = 3) -> None:
        if not 0 < utility_share <= 1 or patience < 1:
            raise InputError(
                f"BestForgetQuality's utility_share must be in (0, 1] and its patience at least 1, got {utility_share} "
                f"and {patience}"
            )
        self.utility_share = utility_share
        self.patience = patience

    def check(self, measuring: ForgetQuality) -> None:
        super().check(measuring)
        if not measuring.utility_sets or measuring.generate_every == 0:
            raise InputError(_NO_UTILITY)

    def score(self, figures: Figures, target: Figures, retain: Figures | None) -> float | None:
        if "model_utility" not in target:
            raise InputError(_NO_UTILITY)
        if "model_utility" not in figures:
            return None
        share = figures["model_utility"] / target["model_utility"] if target["model_utility"] else 1.0
        if share < self.utility_share:
            # Below any log10 of a p-value, which has as many digits as there are forget rows.
            return float(-1e6 - (self.utility_share - share))
        return float(figures["forget_quality_log10_p"])

    def ends(self, scores: Sequence[float]) -> bool:
        best = max(range(len(scores)), key=scores.__getitem__, default=0)
        return len(scores) - 1 - best >= self.patience


class FirstForgotten(SelectionRule):
    """The first evaluation in which a figure of the forget set is at or below the retain-only model's.

    MUSE's rule, there with `forget_knowledge`. Until it is reached, the score is how far the figure is off.

    Args:
        figure: that tells how much is still known.
    """

    def __init__(self, figure: str = "forget_rouge_l_recall") -> None:
        self.figure = figure

    def check(self, measuring: ForgetQuality) -> None:
        super().check(measuring)
        assert measuring.retain is not None
        self._refuse_without(measuring.retain.metrics, "the retain-only model's result")

    def _refuse_without(self, figures: Figures, whose: str) -> None:
        if self.figure not in figures:
            raise InputError(
                f"selection.rule FirstForgotten needs {self.figure!r}, which is not in {whose}: choose another "
                "--selection.rule.figure, or see forget_quality.generate_every and forget_quality.metrics"
            )

    def score(self, figures: Figures, target: Figures, retain: Figures | None) -> float | None:
        self._refuse_without(target, "what is measured here")
        assert retain is not None
        if self.figure not in figures:
            return None
        return float(min(retain[self.figure] - figures[self.figure], 0.0))

    def ends(self, scores: Sequence[float]) -> bool:
        return any(score == 0 for score in scores)


class Selection(Callback):
    """Logs each evaluation's score as `selection`, which the best checkpoint and the export then follow.

    Args:
        rule: what makes a checkpoint the one to keep; null keeps the last.
        stop: end training when the rule expects nothing better.
    """

    def __init__(self, rule: SelectionRule | None = None, stop: bool = False) -> None:
        if stop and rule is None:
            raise InputError("selection.stop is true and there is no rule to stop by: set selection.rule")
        self.rule = rule
        self.stop = stop

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        unmeasured = (
            trainer.num_sanity_val_steps == 0 and not RunFolder.of(trainer).evaluation_file(0).is_file()
        )
        if self.rule is None or stage != "fit":
            return
        self.rule.check(ForgetQuality.of(trainer))
        if unmeasured:
            raise InputError(
                f"selection.rule {type(self.rule).__name__} compares with the model before training, which is not "
                "measured: set trainer.num_sanity_val_steps to -1"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that was killed after its last evaluation had ended by the rule.
        if trainer.ckpt_path is not None and self._ends(self._scores(trainer)):
            trainer.should_stop = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured = ForgetQuality.of(trainer).result
        if trainer.sanity_checking and measured is not None:
            _refuse_unknown_monitors(trainer, measured.metrics)
        if self.rule is None or trainer.state.fn != "fit" or measured is None:
            return
        scores = self._scores(trainer)
        if trainer.sanity_checking:
            return
        # A monitor must have a value, also where there is none; see BestCheckpoint.
        pl_module.log("selection", -math.inf if scores[-1] is None else scores[-1], sync_dist=True)
        if self._ends(scores):
            rank_zero_info(
                f"selection.rule {type(self.rule).__name__} expects nothing better: training ends here"
            )
            trainer.should_stop = True

    def _scores(self, trainer: Trainer) -> list[float | None]:
        """Of all evaluations so far, the one before training included."""
        retain = ForgetQuality.of(trainer).retain
        figures = None if retain is None else retain.metrics
        records = ForgetQuality.trajectory(trainer)
        return [self.rule.score(each, records[0], figures) for each in records] if self.rule else []

    def _ends(self, scores: Sequence[float | None]) -> bool:
        trained = [score for score in scores[1:] if score is not None]
        if self.rule is None or not self.stop or not scores or scores[-1] is None:
            return False
        return self.rule.ends(trained)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which keeps no checkpoint where the monitor was not measured or has no score."""

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        # Lightning would fail; answers may be generated at some evaluations alone.
        if self.monitor is None or self.monitor in monitor_candidates:
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def file_exists(self, filepath: Any, trainer: Trainer) -> bool:
        """Never: a file of the same step was left by a run cut short, and gives way."""
        return False

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        scored = current is None or not torch.isneginf(current)
        return bool(scored and super().check_monitor_top_k(trainer, current))


def _refuse_unknown_monitors(trainer: Trainer, figures: Figures) -> None:
    """Before training, rather than after its first epoch."""
    for callback in trainer.checkpoint_callbacks:
        monitor = getattr(callback, "monitor", None) or "selection"
        if monitor not in ("selection", *figures) and not monitor.startswith("train/"):
            raise InputError(
                f"checkpoint.monitor is {monitor!r}, which is not measured (measured: {', '.join(figures)})"
            )
