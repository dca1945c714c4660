"""Callback that judges whether an unlearning run has made the model forget, and records the verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from dipo_pl.callbacks.collapse_guard import CollapseGuard
from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.callbacks.lookup import callbacks_of
from dipo_pl.errors import InputError, check_number, check_share
from dipo_pl.evaluation.verdict import RANKS, TITLES, Verdict, judge
from dipo_pl.evaluation.verdict_rules import (
    GENERATED,
    UTILITIES,
    Evidence,
    Metrics,
    Thresholds,
    kept_utility,
)
from dipo_pl.metrics.result import EvaluationResult
from dipo_pl.report.model_card import write_model_card
from dipo_pl.storage.run_folder import RunFolder, forgotten_sets

# Signs of the collapse guard that say that the weights are broken.
BROKEN = ("utility", "repetitive", "words")


class Judge(Callback):
    """Callback that ends an unlearning run with a verdict on the exported weights, after their last evaluation.

    The verdict is `forgotten`, `partly`, `not_forgotten` or `cannot_tell`, with a reason for each rule. It is written to
    manifest.json, to the line of metrics.jsonl of these weights, to the model card and to TensorBoard.

    What the model still knows of the forget rows is compared with the best evidence there is: a retain-only model
    (forget_quality.retain_result), else what the target itself gives to rows that it never saw (data.holdout), else to wrong
    answers (perturbed_answer). With none of these it is compared with 0, which is stricter.

    Args:
        removed: share of the distance between the target and that evidence that must be gone, by P(forget), ROUGE,
            extraction strength, VerbMem and KnowMem.
        partly: share that must be gone for `partly`.
        least_distance: distance, as a share of the target's value, below which there was nothing to forget.
        membership: largest distance of the worst membership AUC from a retain-only model's, or from 0.5; with few rows, 2.5
            standard errors of four attacks, or 2 of one.
        forget_quality: Forget Quality above which truth ratios count as a retain-only model's.
        utility: share of the target's utility that must be kept.
        repetition: rise of the share of repeated word 4-grams in answers to retain questions that is allowed.
        word_entropy: share of the target's word entropy in these answers that must be kept.

    Raises:
        InputError: a value is no share, or `partly` is above `removed`.
    """

    def __init__(
        self,
        removed: float = 0.8,
        partly: float = 0.5,
        least_distance: float = 0.1,
        membership: float = 0.1,
        forget_quality: float = 0.05,
        utility: float = 0.95,
        repetition: float = 0.1,
        word_entropy: float = 0.8,
    ) -> None:
        self.thresholds = Thresholds(
            removed, partly, least_distance, membership, forget_quality, utility, repetition, word_entropy
        )
        for name in ("removed", "partly", "utility", "word_entropy"):
            check_share(f"verdict.{name}", getattr(self.thresholds, name))
        for name in ("least_distance", "membership", "forget_quality", "repetition"):
            check_number(f"verdict.{name}", getattr(self.thresholds, name), minimum=0, maximum=1)
        if partly > removed:
            raise InputError(
                f"verdict.partly must be at most verdict.removed (got {partly:g} and {removed:g})"
            )
        self._steps = 0.0

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge, unless another evaluation follows."""
        self._steps = trainer.estimated_stepping_batches
        if ForgetQuality.of(trainer).is_complete(trainer):
            self._conclude(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge after the evaluation that follows training."""
        if trainer.state.fn == "validate":
            self._conclude(trainer, pl_module)

    def _conclude(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        run = RunFolder(trainer.default_root_dir)
        manifest = run.read_manifest() if trainer.is_global_zero else {}
        if "pairs" not in module.trains_on or manifest.get("command") != "fit":
            return
        retain = ForgetQuality.of(trainer).retain_metrics
        guard = callbacks_of(trainer, CollapseGuard)[0]
        verdict = self.of_run(run, retain, guard, self._steps)
        step = run.final_step
        if step is not None:
            run.add_to_evaluation(step, **verdict.entries)
        run.add_to_manifest(verdict_step=step, **verdict.entries)
        write_model_card(run)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("verdict", _as_markdown(verdict), step or 0)

    def of_run(self, run: RunFolder, retain: Metrics | None, guard: CollapseGuard, steps: float) -> Verdict:
        """Return the verdict on the exported weights of a run, else on its last ones.

        Args:
            run: its folder.
            retain: the metrics of the retain-only model; None if there is none.
            guard: what recognizes a collapse.
            steps: optimizer steps that the run was to take.
        """
        records = run.read_metrics()
        manifest = run.read_manifest()
        sets, forgotten = (manifest.get("data") or {}).get("evaluation", {}), forgotten_sets(manifest)
        rows = {name: each["rows"] for name, each in sets.items()}
        target = records[0] if records and records[0]["step"] == 0 else {}
        known = Evidence(target, {}, retain, forgotten, wrong_answers(run, target, forgotten), rows)

        def evidence_of(now: Metrics, warnings: Sequence[str] = ()) -> Evidence:
            return replace(known, now=now, collapse=_collapse(guard, target, now), warnings=warnings)

        # An evaluation without answers would seem better than one with them.
        asked = {f"{name}_{each}" for name in forgotten for each in GENERATED} | UTILITIES.keys()
        verdicts = {
            each["step"]: judge(evidence_of(each), self.thresholds)
            for each in (records[1:] if target else records)
            if target.keys() & asked <= each.keys()
        }
        now: Metrics = next((each for each in records if each["step"] == run.final_step != 0), {})
        warnings = []
        if target and now:
            warnings = [
                *_left_out([sets[each] for each in forgotten if each in sets]),
                *self._warnings(records, now["step"], verdicts, guard, steps, forgotten),
            ]
        return judge(evidence_of(now, warnings), self.thresholds)

    def _warnings(
        self,
        records: list[dict[str, Any]],
        step: int,
        verdicts: Mapping[int, Verdict],
        guard: CollapseGuard,
        steps: float,
        forgotten: Sequence[str],
    ) -> list[str]:
        """Return the signs of failure of all evaluations, and whether another checkpoint would have been better."""
        found: dict[str, str] = {}
        for last in range(1, len(records)):
            signs = guard.signs(records[: last + 1], records[last]["step"] / max(steps, 1), forgotten)
            for name, sign in signs.items():
                if name not in BROKEN or records[last]["step"] != step:
                    found.setdefault(name, sign.what)
        kept = [kept_utility(records[0], each) for each in records[1:]]
        known = [each for each in kept if each is not None]
        warnings = list(found.values())
        if known and all(each.share < self.thresholds.utility for each in known):
            best = max(known, key=lambda each: each.share)
            some = f" of the {len(known)} with answers" if len(known) < len(kept) else ""
            warnings.append(
                f"no evaluation{some} after training began kept {self.thresholds.utility:.0%} of {best.title} (the best "
                f"{best.share:.0%})"
            )
        # The first of equals.
        better = max(verdicts, key=lambda each: (RANKS[verdicts[each].name], -each), default=step)
        if step in verdicts and RANKS[verdicts[better].name] > RANKS[verdicts[step].name]:
            warnings.append(
                f"step {better} would have been '{TITLES[verdicts[better].name]}', but step {step} was exported: "
                "selection.rule NearestToUnseen chooses among checkpoints"
            )
        return warnings


def _left_out(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence on forget rows that were not measured, if there are any; see `Manifest`."""
    rows = sum(each["rows"] for each in measured)
    whole = sum(each.get("of", each["rows"]) for each in measured)
    if rows >= whole:
        return []
    return [f"only {rows} of the {whole} forget rows were measured (data.evaluation_rows)"]


def _collapse(guard: CollapseGuard, target: Metrics, now: Metrics) -> list[str]:
    if not target or not now:
        return []
    return [sign.what for name, sign in guard.signs([target, now], 0.0).items() if name in BROKEN]


def wrong_answers(run: RunFolder, target: Metrics, forgotten: Sequence[str]) -> dict[str, float]:
    """Return the target's mean probability per token of wrong answers to the questions of some sets, where there are any."""
    path = run.evaluation_file(0)
    if not target or not path.is_file():
        return {}
    return _wrong_answers(path, tuple(forgotten), path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _wrong_answers(path: Path, forgotten: tuple[str, ...], modified: int) -> dict[str, float]:
    # Every evaluation of a run asks for this; `modified` tells a file that was written again.
    sets = EvaluationResult.read(path).sets
    # The original, the correct and then the wrong answers.
    losses = {
        name: [nll for row in sets[name].rows for nll in row.get("nll", [])[2:]]
        for name in forgotten
        if name in sets
    }
    return {name: fmean(math.exp(-each) for each in some) for name, some in losses.items() if some}


def _as_markdown(verdict: Verdict) -> str:
    lines = [f"**{TITLES[verdict.name]}**", "", "| rule | outcome | evidence | |", "|---|---|---|---|"]
    lines += [
        f"| {each.rule} | {each.status.replace('_', ' ')} | {each.evidence} | {each.text} |"
        for each in verdict.reasons
    ]
    return "\n".join(lines)
