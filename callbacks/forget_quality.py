"""Callback that evaluates forgetting and utility at each validation: before, during and after training."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torchmetrics import MetricCollection

from dipo_pl import metrics as known
from dipo_pl.batch import EvaluationBatch
from dipo_pl.callbacks.advice import retain_only_command
from dipo_pl.callbacks.export import Export
from dipo_pl.callbacks.generation_queue import GenerationQueue
from dipo_pl.callbacks.headlines import headlines
from dipo_pl.callbacks.logged_names import logged_name
from dipo_pl.callbacks.lookup import callbacks_of
from dipo_pl.callbacks.manifest import Manifest
from dipo_pl.callbacks.measurement import Measurement
from dipo_pl.callbacks.needs_answers import NeedsAnswers
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.distributed import is_sharded
from dipo_pl.errors import NOT_FINITE, InputError, TrainingError, check_count
from dipo_pl.evaluation.retain_result import check_comparable, comparable_metrics, read_result
from dipo_pl.evaluation.verdict_rules import Metrics
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.metrics import base
from dipo_pl.metrics.base import FORGET, HOLDOUT, EvaluationMetric, MeasuredSet
from dipo_pl.metrics.conventions import CONVENTIONS, UTILITY_SETS, ConventionName
from dipo_pl.metrics.observations import Observations
from dipo_pl.metrics.result import EvaluationResult, SetResult
from dipo_pl.storage.fingerprints import rows_fingerprint, settings_fingerprint
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.strategies.fsdp import FSDP2Strategy

# Evaluations from one with answers to the next, where something else says which further ones need them.
SELDOM = 5


class ForgetQuality(Callback):
    """Callback that evaluates every evaluation set at each validation.

    Lightning's own settings say how often (trainer.check_val_every_n_epoch, or with it null
    trainer.val_check_interval in steps). Each rank evaluates its share of the rows. An evaluation is a line of
    metrics.jsonl, a file of evaluation/ with the values of every row, and scalars in TensorBoard.

    Args:
        retain_result: the result of a model that never saw the forget set: the run folder of such a model evaluated
            with this same data, one of its evaluation files, open-unlearning's TOFU_EVAL.json or MUSE_EVAL.json,
            TOFU's aggregated log, or the name of a shipped one (llama2-7b_retain90, muse_news_retrained,
            muse_books_retrained). Without it neither Forget Quality nor PrivLeak is reported.
        utility_sets: the evaluation sets whose probability, ROUGE-L recall and truth ratio enter Model
            Utility; TOFU's nine values by default. A model made from scratch knows no real authors.
        convention: `dipo_pl` takes all rows, and truth ratios from means of losses; `tofu` is the same on the
            first 300 rows of a set (data.evaluation_rows 300); `muse` is MUSE's own code; `open_unlearning` adds its
            1e-10 to denominators, gives no extraction strength below 1/n, stems words in VerbMem and KnowMem, and
            compares VerbMem's continuations with all of the text that follows;
            `arithmetic` averages probabilities of wrong answers instead of losses; in `prob_mean` the truth ratio of
            the forget set is the mean of P_correct / (P_correct + P_wrong). Results of different conventions are not
            compared.
        metrics: the metrics beyond probability, truth ratio, ROUGE, Forget Quality and Model Utility; null is
            Memorization, Membership, Fluency, Verbatim and Knowledge, which are of MUSE's sets, ExactMatch and LUMEScore,
            which are of LUME's.
        generate_every: generate an answer to every row, the slow part, at each n-th evaluation besides the first one, that
            after the last step, those that would end training by `selection.rule`, and that of the exported checkpoint; 0
            never does. null is 5 where training ends by a rule that needs no answers (NearestToUnseen,
            LowestForgetProbability), else 1. ROUGE, Model Utility and Fluency need generated answers.
        max_new_tokens: maximum length of a generated answer in tokens; MUSE's sets have their own.
    """

    def __init__(
        self,
        retain_result: str | None = None,
        utility_sets: list[str] | None = None,
        convention: ConventionName = "dipo_pl",
        metrics: list[EvaluationMetric] | None = None,
        generate_every: int | None = None,
        max_new_tokens: int = 200,
    ) -> None:
        check_count("forget_quality.max_new_tokens", max_new_tokens)
        check_count("forget_quality.generate_every", generate_every, 0)
        self.retain_result = retain_result
        self.utility_sets = list(UTILITY_SETS) if utility_sets is None else utility_sets
        self.convention = CONVENTIONS[convention]
        further = [
            known.Memorization(), known.Membership(), known.Fluency(), known.Verbatim(), known.Knowledge(),
            known.ExactMatch(), known.LUMEScore(),
        ]  # fmt: skip
        self.metrics: list[EvaluationMetric] = [
            known.Probability(), known.TruthRatio(), known.Rouge(), known.ForgetQuality(),
            *(further if metrics is None else metrics), known.ModelUtility(self.utility_sets),
        ]  # fmt: skip
        names = [type(each).__name__ for each in self.metrics]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"forget_quality.metrics would have {twice[0]} twice: leave one of them out")
        self.generate_every = generate_every
        self._every = 1 if generate_every is None else generate_every
        self.max_new_tokens = max_new_tokens
        self.retain: EvaluationResult | None = None
        # Those of its metrics that can be compared with this run's: not membership by other holdout rows.
        self.retain_metrics: Metrics | None = None
        self.result: EvaluationResult | None = None
        # Steps whose evaluations, made by this process, have all that is asked for.
        self.complete_steps: set[int] = set()
        # The step of an earlier checkpoint whose weights are evaluated; None for those of the trainer's step.
        self.checkpoint_step: int | None = None
        self.queue = GenerationQueue()
        self._evaluations = 0
        self._underway = False
        # True once it is decided that the current evaluation generates answers.
        self.generates = False
        self._collections: list[MetricCollection] = []
        # Batches of an evaluation in which it is decided at the end whether answers are generated.
        self._undecided: list[tuple[int, Observations, list[list[int]]]] | None = None

    @classmethod
    def of(cls, trainer: Trainer) -> "ForgetQuality":
        """Return the callback of a trainer."""
        return callbacks_of(trainer, cls)[0]

    @staticmethod
    def trajectory(trainer: Trainer) -> list[dict[str, Any]]:
        """Return the metrics of all evaluations up to this step, on every rank, as rank 0 reads them in metrics.jsonl.

        Later lines were left by an interrupted run, and are about to be replaced.
        """
        records = RunFolder(trainer.default_root_dir).read_metrics() if trainer.is_global_zero else []
        past = [each for each in records if each["step"] <= trainer.global_step]
        found: list[dict[str, Any]] = trainer.strategy.broadcast(past)
        return found

    def state_dict(self) -> dict[str, int]:
        """Return the number of finished evaluations: a run that resumes from here repeats one that is underway."""
        return {"evaluations": self._evaluations - self._underway}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Set the number of finished evaluations."""
        self._evaluations = state_dict["evaluations"]

    def step(self, trainer: Trainer) -> int:
        """Return the optimizer steps behind the weights that are evaluated."""
        return trainer.global_step if self.checkpoint_step is None else self.checkpoint_step

    def is_complete(self, trainer: Trainer) -> bool:
        """Return whether the evaluation of the exported weights has all that is asked for."""
        exported = [each.step(trainer) for each in callbacks_of(trainer, Export)]
        return {*(exported or [trainer.global_step])} <= self.complete_steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the settings against the evaluation sets, and read the retain-only model's result.

        Raises:
            InputError: they do not fit.
        """
        asked = callbacks_of(trainer, NeedsAnswers)  # type: ignore[type-abstract]
        if self.generate_every is None and any(each.decides for each in asked):
            self._every = SELDOM
        sets = {each.name: each for each in ForgetRetain.of(trainer).evaluation_sets}
        for name in self.utility_sets:
            if name not in sets:
                raise InputError(
                    f"forget_quality.utility_sets names {name!r}, which is not measured (measured: "
                    f"{', '.join(sets)}): take it out, or add it to data.evaluate"
                )
        norms = [type(each).__name__ for each in self.metrics if "gradient_norm" in each.inputs]
        if norms and isinstance(trainer.strategy, FSDP2Strategy):
            raise InputError(
                f"forget_quality.metrics: {norms[0]} needs gradient norms, which are not supported for sharded models: "
                "leave them out (gradient_norm false), or evaluate with trainer.strategy ddp"
            )
        limit = self.convention.rows
        for each in sets.values():
            if limit is not None and len(each.rows) > limit:
                raise InputError(
                    f"forget_quality.convention {self.convention.name} takes at most {limit} rows of a set, and "
                    f"{each.name} has {len(each.rows)}: set data.evaluation_rows to {limit}, or another convention"
                )
        module: Any = pl_module
        if stage == "fit" and "pairs" in module.trains_on and FORGET in sets:
            for line in self._lacking(trainer, module, sets):
                rank_zero_info(line)
        if self.retain_result is None:
            return
        if FORGET not in sets:
            raise InputError(
                "forget_quality.retain_result is given, but data.evaluate leaves out the forget set"
            )
        self.retain, settings = read_result(self.retain_result), self._settings(trainer)
        rows, tokens = sets[FORGET].rows, sets[FORGET].tokens
        check_comparable(self.retain, self.retain_result, self.convention.name, rows, settings, tokens=tokens)
        theirs = self.retain.sets.get(HOLDOUT)
        ours = rows_fingerprint(sets[HOLDOUT].rows) if HOLDOUT in sets else None
        self.retain_metrics = comparable_metrics(self.retain, ours)
        if ours and theirs and theirs.fingerprint != ours:
            rank_zero_info(
                f"PrivLeak is not measured: forget_quality.retain_result {self.retain_result} was evaluated on other "
                "holdout rows"
            )

    def _lacking(self, trainer: Trainer, module: Any, sets: Mapping[str, EvaluationSet]) -> list[str]:
        """Return what Forget Quality and the verdict lack, and how it is had."""
        rows = sets[FORGET].rows
        wrong, questions = (any(getattr(row, each) for row in rows) for each in ("wrong_answers", "question"))
        lacks = [] if wrong else ["wrong answers in the forget rows (perturbed_answer, a list in each row)"]
        lacks += [] if self.retain_result else ["a retain-only model"]
        lines = []
        if lacks and questions:
            lines.append(f"Forget Quality is not measured: it needs {' and '.join(lacks)}")
        if self.retain_result:
            return lines
        other = "the holdout" if HOLDOUT in sets else "wrong answers" if wrong else "0"
        better = f"the verdict compares with {other}. A retain-only model is better evidence:"
        if ForgetRetain.of(trainer).requests:
            return [
                *lines,
                f"{better} give one that saw none of the requests as retain_only, in the file of requests or after "
                "dipo-pl sequence",
            ]
        words = [word for each in callbacks_of(trainer, Manifest) for word in each.arguments]
        run = RunFolder(trainer.default_root_dir).path
        folder = run.with_name(f"{run.name}-retain-only")
        command = retain_only_command(words, folder.name, "path" in vars(module.policy))
        line = (
            f"{better} if there is a model BASE from before it saw the forget rows, run {command}, then this run with "
            f"--forget_quality.retain_result {folder}"
        )
        if HOLDOUT not in sets:
            line += "; else give --data.holdout FILE, rows of the same form that no model has seen"
        return [*lines, line]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether answers are generated, and make the metrics of each evaluation set."""
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        self._evaluations += training
        self._underway = training
        last = training and trainer.global_step >= trainer.estimated_stepping_batches
        due = not training or last or self._evaluations % max(self._every, 1) == 0
        self._start(trainer, pl_module, self._every > 0 and due)
        self._undecided = None if due or not self._every else []

    def _start(self, trainer: Trainer, module: LightningModule, generates: bool) -> None:
        """Make the metrics of each evaluation set."""
        self.generates = generates
        self.queue.start()
        self._collections = []
        for each in ForgetRetain.of(trainer).evaluation_sets:
            measured = MeasuredSet(
                each, self.convention, self.generates and self.new_tokens(each) > 0, self._retain_set(each)
            )
            self._collections.append(base.collection(self.metrics, measured).to(module.device))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EvaluationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the metrics with a batch, or keep it until enough rows wait for generated answers.

        Raises:
            TrainingError: a loss on any rank is not finite; raised on all of them.
        """
        module: Any = pl_module
        seen: Observations = outputs["observations"]
        broken = not bool(seen.nll.isfinite().all())
        if trainer.strategy.reduce_boolean_decision(broken, all=False):
            raise TrainingError(
                f"an answer's loss is {NOT_FINITE} at step {self.step(trainer)}: the model's weights are broken"
            )
        if any("gradient_norm" in each.inputs for each in base.members(self._collections[dataloader_idx])):
            with trainer.precision_plugin.forward_context():
                seen = replace(seen, gradient_norm=torch.tensor(module.gradient_norms(batch)))
        if self._undecided is not None:
            self._undecided.append((dataloader_idx, seen, batch.prompts))
        self._take(trainer, module, dataloader_idx, seen, batch.prompts)

    def _take(
        self, trainer: Trainer, module: Any, place: int, seen: Observations, prompts: list[list[int]]
    ) -> None:
        """Update the metrics of a set with a batch, now or once it has generated answers."""
        length = self.new_tokens(ForgetRetain.of(trainer).evaluation_sets[place])
        if not (length and self.generates):
            self._collections[place].update(seen)
            return
        due = self.queue.add(length, self._collections[place], seen, prompts)
        if is_sharded(module.language_model):
            # All ranks generate together.
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
        if due:
            self.queue.generate(module, length)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute all metrics on every rank, log them, and write them on rank 0."""
        self.result = None
        measured = self._measured(trainer, pl_module)
        undecided, self._undecided = self._undecided, None
        if measured is not None and undecided is not None and self._lacks_answers(trainer, measured[1]):
            self._start(trainer, pl_module, True)
            for batch in undecided:
                self._take(trainer, pl_module, *batch)
            measured = self._measured(trainer, pl_module)
        if measured is None:
            rank_zero_info("only some rows were measured (a limit on batches is set): nothing is reported")
            return
        sets, values = measured
        step = self.step(trainer)
        if self.generates or self.generate_every == 0:
            self.complete_steps.add(step)
            for each in callbacks_of(trainer, Measurement):  # type: ignore[type-abstract]
                values |= each.measure(trainer, pl_module)
        made = (_epochs_done(trainer, step), step, list(self.utility_sets), self._settings(trainer))
        self.result = EvaluationResult(self.convention.name, values, sets, *made)
        if not trainer.sanity_checking:
            pl_module.log_dict(values, logger=False, sync_dist=True)
        if trainer.is_global_zero:
            run, again = RunFolder(trainer.default_root_dir), self.checkpoint_step is not None
            known = {name for each in run.read_metrics() if again and each["step"] == step for name in each}
            log_evaluation(trainer, {name: each for name, each in values.items() if name not in known}, step)
            # Later evaluations of this training stay.
            self.result.save(run, trainer.global_step)
            rank_zero_info(_summary(step, values))

    def _measured(
        self, trainer: Trainer, module: LightningModule
    ) -> tuple[dict[str, SetResult], dict[str, float]] | None:
        """Return the result on each set and the metrics made from them; None if only some rows were measured."""
        self.queue.generate_rest(module)
        found, self._collections = [base.set_result(each) for each in self._collections], []
        names = [each.name for each in ForgetRetain.of(trainer).evaluation_sets]
        sets = {name: each for name, each in zip(names, found, strict=True) if each is not None}
        return None if len(sets) < len(found) else (sets, base.all_values(sets, self.metrics, self.retain))

    @staticmethod
    def _lacks_answers(trainer: Trainer, metrics: Metrics) -> bool:
        asked = callbacks_of(trainer, NeedsAnswers)  # type: ignore[type-abstract]
        return any(each.needs_answers(trainer, metrics) for each in asked)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the evaluation as finished."""
        self._underway = False

    def generating(self, evaluations: int) -> int:
        """Return how many of the next evaluations of training generate answers; the last one of a run always does."""
        if not self._every or not evaluations:
            return 0
        end = self._evaluations + evaluations
        due = end // self._every - self._evaluations // self._every
        return due + (end % self._every > 0)

    def new_tokens(self, evaluation_set: EvaluationSet) -> int:
        """Return the maximum length of the answers that are generated to a set, where some are; 0 for none."""
        own = evaluation_set.new_tokens
        return self.max_new_tokens if own is None else own

    def _settings(self, trainer: Trainer) -> dict[str, Any]:
        """Return what else changes values; results with different ones are not compared."""
        data = ForgetRetain.of(trainer)
        prompts = {"prompt": data.prompt} | {
            f"{each.name} prompt": each.prompt for each in data.evaluation_sets
        }
        named = {name: each for name, each in prompts.items() if each is not None}
        settings: dict[str, Any] = {
            name: f"{type(each).__name__} ({settings_fingerprint(each)[:8]})" for name, each in named.items()
        }
        settings |= {"max_new_tokens": self.max_new_tokens} if self._every else {}
        settings |= data.settings
        for metric in self.metrics:
            settings |= metric.settings
        return settings

    def _retain_set(self, evaluation_set: EvaluationSet) -> SetResult | None:
        """Return the retain-only model's result on these same rows; None if its set of that name has others."""
        found = self.retain.sets.get(evaluation_set.name) if self.retain is not None else None
        if found is None or found.fingerprint != rows_fingerprint(evaluation_set.rows):
            return None
        if None not in (found.tokens, evaluation_set.tokens) and found.tokens != evaluation_set.tokens:
            return None
        return found


def log_evaluation(trainer: Trainer, values: Mapping[str, float], step: int) -> None:
    """Log values of an evaluation at a step, by group; see `logged_names`."""
    for logger in trainer.loggers:
        logger.log_metrics({logged_name(key): value for key, value in values.items()}, step)


def _epochs_done(trainer: Trainer, step: int) -> float:
    """Return the epochs of training behind the weights of a step; a fraction within an epoch."""
    if not step:
        return 0.0
    steps_an_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return round(step / steps_an_epoch, 3)


def _summary(step: int, values: dict[str, float]) -> str:
    shown = {title: key for title, key in headlines(values).items() if key in values}
    return f"step {step}: " + ", ".join(f"{title} {values[key]:.3g}" for title, key in shown.items())
