"""Callbacks that choose the checkpoint to keep and end training when no better one is expected."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from dipo_pl.callbacks.best_checkpoint import BestCheckpoint
from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.callbacks.lookup import callbacks_of
from dipo_pl.callbacks.needs_answers import NeedsAnswers
from dipo_pl.callbacks.verdict import Judge, wrong_answers
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.errors import InputError, check_count, check_objects, check_share
from dipo_pl.evaluation.deviation import FARTHEST, deviation
from dipo_pl.evaluation.verdict_rules import (
    KNOWS_NOTHING,
    UTILITIES,
    Evidence,
    Metrics,
    Thresholds,
    baseline,
    kept_utility,
    measured_again,
)
from dipo_pl.metrics.base import FORGET
from dipo_pl.storage.fingerprints import settings_fingerprint
from dipo_pl.storage.run_folder import RunFolder

# The score of lost utility, below log10 of any p-value, which is not smaller than about -(number of forget rows).
LOST = -1e6
NO_RULE = "--selection.rule null --selection.stop false"
_NO_QUALITY = (
    "selection.rule BestForgetQuality needs Forget Quality, which is not measured: the forget rows lack wrong answers "
    "(perturbed_answer, a list in each row): give --selection.rule NearestToUnseen, which needs none"
)
_NO_UTILITY = (
    "selection.rule BestForgetQuality needs Model Utility, which is not measured: see forget_quality.utility_sets and "
    "forget_quality.generate_every"
)


class SelectionRule(ABC):
    """Base class of rules that score each evaluation; the first checkpoint with the highest score is kept.

    Attributes:
        rows: number of rows of each evaluation set; empty if not known. `Selection` fills in this and what follows.
        forgotten: names of the evaluation sets that are to be forgotten.
        wrong_answers: the target's mean probability of wrong answers to the questions of these sets, by set.
        thresholds: of the verdict.
        needs_answers: evaluations without generated answers have no score.
    """

    needs_answers = True
    rows: Mapping[str, int] = MappingProxyType({})
    forgotten: Sequence[str] = ("forget",)
    wrong_answers: Mapping[str, float] = MappingProxyType({})
    thresholds = Thresholds()

    @abstractmethod
    def score(self, metrics: Metrics, target: Metrics, retain: Metrics | None) -> float | None:
        """Return the score of an evaluation, or None if it lacks a metric that the rule needs.

        Args:
            metrics: the evaluation.
            target: the evaluation before training.
            retain: the result of the retain-only model; None if it is not given.

        Raises:
            InputError: a metric that the rule needs is never measured in this run.
        """

    def check(self, evaluation: ForgetQuality) -> None:
        """Check before the first evaluation that the rule can be applied; raise InputError if it cannot."""
        if evaluation.retain is None:
            raise InputError(
                f"selection.rule {type(self).__name__} needs a retain-only model: give its result as "
                "forget_quality.retain_result, or --selection.rule NearestToUnseen, which needs none"
            )

    @abstractmethod
    def ends(self, scores: Sequence[float]) -> str | None:
        """Return why no better score is expected after these, as a clause; None if one may still come."""


class UtilityKept(SelectionRule):
    """Base class of rules that score evaluations with enough utility, and need no retain-only model.

    Utility is Model Utility, KnowMem of the retain set, or P(retain): the first one that was measured. If it is lost, the
    score is -1e6 minus the share that is missing.

    Args:
        utility_share: share of the target's utility that must be kept, in (0, 1].
        patience: evaluations without a better score, and without utility coming back, after which no better one is
            expected.
    """

    def __init__(self, utility_share: float = 0.95, patience: int = 3) -> None:
        check_share("selection.rule.utility_share", utility_share)
        check_count("selection.rule.patience", patience)
        self.utility_share = utility_share
        self.patience = patience

    def evidence(self, metrics: Metrics, target: Metrics, retain: Metrics | None) -> Evidence:
        """Return what the verdict would be made from."""
        return Evidence(target, metrics, retain, self.forgotten, self.wrong_answers, self.rows)

    @abstractmethod
    def distance(self, evidence: Evidence) -> float:
        """Return how far an evaluation is from a model that never saw the rows, at least 0."""

    def check(self, evaluation: ForgetQuality) -> None:
        """Check nothing: what is missing is seen in the evaluation before training."""

    def score(self, metrics: Metrics, target: Metrics, retain: Metrics | None) -> float | None:
        """Return the distance, negated; less if utility is lost, and None if utility was not measured now."""
        unknown = any(f"{rows}_probability" not in target for rows in self.forgotten)
        lacks = "P(forget)" if unknown else "a utility" if UTILITIES.keys().isdisjoint(target) else None
        if lacks is not None:
            raise InputError(
                f"selection.rule {type(self).__name__} needs {lacks}, which is not measured: add forget and retain to "
                f"data.evaluate, or give {NO_RULE}"
            )
        kept = kept_utility(measured_again(target, metrics), metrics)
        if kept is None and any(target.get(each, 0) >= KNOWS_NOTHING for each in UTILITIES):
            return None
        if kept is not None and kept.share < self.utility_share:
            return LOST - (self.utility_share - kept.share)
        return -self.distance(self.evidence(metrics, target, retain))

    def ends(self, scores: Sequence[float]) -> str | None:
        """Return whether the last `patience` scores are no better than one before them."""
        before, last = scores[: -self.patience], scores[-self.patience :]
        # Utility that was lost and rises again may come back.
        recovers = len(last) > 1 and last[-1] == max(last) > last[-2]
        if not before or max(before) < max(last) or (last[-1] < LOST and recovers):
            return None
        lost = "utility was lost" if max(last) < LOST else "forgetting did not go on"
        return f"{lost} in the last {self.patience} evaluations"


class LowestForgetProbability(UtilityKept):
    """Rule that keeps the lowest P(forget) among evaluations that keep utility, else the best utility.

    P(forget) counts as 0 from where a model is that never saw the rows: at or below the retain-only model's, or without one
    what the model before training gives to holdout rows. So training does not go on to erase what is forgotten already.
    """

    needs_answers = False

    def distance(self, evidence: Evidence) -> float:
        """Return P(forget) minus where it should be, of the set that is forgotten least."""
        aims = {rows: baseline(evidence, rows, "probability")[0] or 0.0 for rows in evidence.forgotten}
        return max(0.0, *(float(evidence.now[f"{rows}_probability"] - aim) for rows, aim in aims.items()))

    def ends(self, scores: Sequence[float]) -> str | None:
        """Return whether P(forget) is where it should be, or no better score is expected."""
        if scores and scores[-1] == 0:
            return "P(forget) is that of a model that never saw the rows"
        return super().ends(scores)


class NearestToUnseen(UtilityKept):
    """Rule that keeps the evaluation nearest to a model that never saw the rows, among those that keep utility.

    The score is minus the deviation in units of the thresholds (`dipo_pl.evaluation.deviation.deviation`), over
    P(forget), ROUGE, extraction strength, membership and Forget Quality: -1 and above is forgotten by each of them.
    Membership and Forget Quality lower the score where the rows are erased too far. The more evidence there is (a
    retain-only model, a holdout), the better the rule knows where to end.

    Where no step meets all rules of the verdict, Forget Quality can be the one that is asked for first: any evaluation with
    `forget_quality` comes before all without it.

    Args:
        utility_share: see `UtilityKept`.
        patience: see `UtilityKept`.
        forget_quality: p-value that Forget Quality must have where it is measured, in [0, 1]; 0 asks for none.
    """

    needs_answers = False

    def __init__(self, utility_share: float = 0.95, patience: int = 3, forget_quality: float = 0.0) -> None:
        super().__init__(utility_share, patience)
        check_share("selection.rule.forget_quality", forget_quality, zero=True)
        self.forget_quality = forget_quality

    def score(self, metrics: Metrics, target: Metrics, retain: Metrics | None) -> float | None:
        """Return the deviation, negated, as the base class does; None if no measure of forgetting was taken now."""
        score = super().score(metrics, target, retain)
        now, before = self.evidence(metrics, target, retain), self.evidence(target, target, retain)
        unknown = deviation(now, self.thresholds) is None and deviation(before, self.thresholds) is not None
        return None if unknown else score

    def distance(self, evidence: Evidence) -> float:
        """Return the deviation; 0 if the target knew nothing of the rows."""
        lacks = evidence.now.get("forget_quality", 1.0) < self.forget_quality
        return (deviation(evidence, self.thresholds) or 0.0) + (FARTHEST if lacks else 0.0)

    def ends(self, scores: Sequence[float]) -> str | None:
        """Return whether the rows are forgotten, or no better score is expected."""
        if scores and scores[-1] >= -1:
            return "the forget rows are like rows that the model never saw"
        return super().ends(scores)


class BestForgetQuality(SelectionRule):
    """Rule that keeps the best Forget Quality among evaluations that keep Model Utility, else the best utility.

    The score is log10 of Forget Quality; if utility is lost, -1e6 minus the missing share.

    Args:
        utility_share: share of the target's Model Utility that must be kept, in (0, 1].
        patience: evaluations without a better score after which no better one is expected.
    """

    def __init__(self, utility_share: float = 0.95, patience: int = 3) -> None:
        check_share("selection.rule.utility_share", utility_share)
        check_count("selection.rule.patience", patience)
        self.utility_share = utility_share
        self.patience = patience

    def check(self, evaluation: ForgetQuality) -> None:
        """Check that there is a retain-only model with truth ratios, and that Model Utility will be measured."""
        super().check(evaluation)
        assert evaluation.retain is not None
        theirs = evaluation.retain.sets.get(FORGET)
        if theirs is None or theirs.values("log_truth_ratio") is None:
            raise InputError(_NO_QUALITY)
        if not evaluation.utility_sets or evaluation.generate_every == 0:
            raise InputError(_NO_UTILITY)

    def score(self, metrics: Metrics, target: Metrics, retain: Metrics | None) -> float | None:
        """Return log10 of Forget Quality, less if utility is lost."""
        if "model_utility" not in target:
            raise InputError(_NO_UTILITY)
        if "forget_quality_log10_p" not in target:
            raise InputError(_NO_QUALITY)
        if "model_utility" not in metrics:
            return None
        share = metrics["model_utility"] / target["model_utility"] if target["model_utility"] else 1.0
        if share < self.utility_share:
            return float(LOST - (self.utility_share - share))
        return float(metrics["forget_quality_log10_p"])

    def ends(self, scores: Sequence[float]) -> str | None:
        """Return whether the last `patience` scores are not better than one before them."""
        best = max(range(len(scores)), key=scores.__getitem__, default=0)
        if len(scores) - 1 - best < self.patience:
            return None
        return f"no checkpoint was better in the last {self.patience} evaluations"


class FirstForgotten(SelectionRule):
    """Rule that keeps the first evaluation whose metric of the forget set is at or below the retain-only model's.

    Until then the score is the remaining distance, negated. MUSE uses this rule with `forget_knowledge`.

    Args:
        metric: the metric, which is higher the more is known.
    """

    def __init__(self, metric: str = "forget_rouge_l_recall") -> None:
        self.metric = metric

    def check(self, evaluation: ForgetQuality) -> None:
        """Check that the retain-only model's result has the metric, on the same rows."""
        super().check(evaluation)
        assert evaluation.retain_metrics is not None
        self._refuse_without(evaluation.retain_metrics, "the retain-only model's result on these rows")

    def _refuse_without(self, metrics: Metrics, where: str) -> None:
        if self.metric not in metrics:
            raise InputError(
                f"selection.rule FirstForgotten needs {self.metric!r}, which is not in {where}: choose another "
                "--selection.rule.metric, or see forget_quality.generate_every and forget_quality.metrics"
            )

    def score(self, metrics: Metrics, target: Metrics, retain: Metrics | None) -> float | None:
        """Return 0 if the metric is at or below the retain-only model's, else the distance negated."""
        self._refuse_without(target, "the evaluation before training")
        assert retain is not None
        if self.metric not in metrics:
            return None
        return float(min(retain[self.metric] - metrics[self.metric], 0.0))

    def ends(self, scores: Sequence[float]) -> str | None:
        """Return whether an evaluation has reached the retain-only model."""
        return f"{self.metric} is at the retain-only model's" if 0 in scores else None


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
