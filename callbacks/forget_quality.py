"""Measures forgetting and utility at each validation: before training, during it and at its end."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from dipo_pl.batch import EvaluationBatch
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.distributed import is_sharded
from dipo_pl.errors import InputError, TrainingError
from dipo_pl.evaluation.conventions import CONVENTIONS, UTILITY_SETS, ConventionName
from dipo_pl.evaluation.measurement import measured
from dipo_pl.evaluation.observation import Observation
from dipo_pl.evaluation.result import EvaluationResult, SetResult
from dipo_pl.evaluation.retain_result import check_comparable, read_result
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.measures import Fluency, Knowledge, Measure, Membership, Memorization, Verbatim
from dipo_pl.measures.base import FORGET, HOLDOUT, Answered
from dipo_pl.storage.fingerprints import rows_fingerprint, settings_fingerprint
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.strategies.fsdp import FSDP2Strategy

# Rows that generate together: more of them than are measured together, since each step of a few is as slow.
GENERATED_TOGETHER = 64

# What a person looks at first on question-answering benchmarks, by the name it is shown under.
HEADLINES = {
    "Forget Quality": "forget_quality",
    "Model Utility": "model_utility",
    "P(forget)": "forget_probability",
    "ROUGE(forget)": "forget_rouge_l_recall",
    "P(retain)": "retain_probability",
    "ROUGE(retain)": "retain_rouge_l_recall",
}
# And on MUSE.
MUSE_HEADLINES = {
    "VerbMem": "forget_verbatim",
    "KnowMem(forget)": "forget_knowledge",
    "KnowMem(retain)": "retain_knowledge",
    "PrivLeak": "priv_leak",
    "P(forget)": "forget_probability",
    "P(retain)": "retain_probability",
}


def headlines(figures: Collection[str]) -> dict[str, str]:
    """The title of each figure to be shown first."""
    of_muse = {"retain_knowledge", "retain_questions_probability"}
    return HEADLINES if of_muse.isdisjoint(figures) else MUSE_HEADLINES


class ForgetQuality(Callback):
    """Measures every evaluation set at each validation: before training, during it and at its end.

    How often is Lightning's own setting (trainer.check_val_every_n_epoch, or with it null
    trainer.val_check_interval in steps). Every process takes its share of the rows. Each evaluation is a line of
    metrics.jsonl, a file of evaluation/ with every row's values, and scalars in TensorBoard.

    Args:
        retain_result: what a model that never saw the forget set makes of it: the run folder of such a model
            measured with this same data, one of its evaluation files, open-unlearning's TOFU_EVAL.json or
            MUSE_EVAL.json, TOFU's aggregated log, or the name of a shipped one (llama2-7b_retain90,
            muse_news_retrained, muse_books_retrained). Without it neither Forget Quality nor PrivLeak is reported.
        utility_sets: the evaluation sets whose probability, ROUGE-L recall and truth ratio enter Model
            Utility; TOFU's nine numbers by default. A model made from scratch knows no real authors.
        convention: `dipo_pl` takes all rows, and truth ratios from means of losses; `tofu` is the same on the
            first 300 rows of a set (data.evaluation_rows 300); `muse` is MUSE's own code; `open_unlearning` adds its
            1e-10 to denominators, gives no extraction strength below 1/n, stems words in VerbMem and KnowMem, and
            compares VerbMem's continuations with all of the text that follows;
            `arithmetic` averages probabilities of wrong answers instead of losses. Results of different conventions
            are not compared.
        measures: what is measured beyond probability, truth ratio and ROUGE; null is Memorization, Membership,
            Fluency, and Verbatim and Knowledge, which MUSE's sets alone have.
        generate_every: generate an answer to every row, the slow part, at each n-th evaluation besides the first and
            the last one; 0 never does. ROUGE, Model Utility and Fluency need generated answers.
        max_new_tokens: length at which a generated answer is cut; MUSE's sets have their own.
    """

    def __init__(
        self,
        retain_result: str | None = None,
        utility_sets: list[str] | None = None,
        convention: ConventionName = "dipo_pl",
        measures: list[Measure] | None = None,
        generate_every: int = 1,
        max_new_tokens: int = 200,
    ) -> None:
        if max_new_tokens < 1:
            raise InputError(f"forget_quality.max_new_tokens must be at least 1, got {max_new_tokens}")
        if generate_every < 0:
            raise InputError(f"forget_quality.generate_every must be at least 0, got {generate_every}")
        self.retain_result = retain_result
        self.utility_sets = list(UTILITY_SETS) if utility_sets is None else utility_sets
        self.convention = CONVENTIONS[convention]
        everything = [Memorization(), Membership(), Fluency(), Verbatim(), Knowledge()]
        self.measures = everything if measures is None else measures
        self.generate_every = generate_every
        self.max_new_tokens = max_new_tokens
        self.retain: EvaluationResult | None = None
        self.result: EvaluationResult | None = None
        self.complete_step = -1
        self._evaluations = 0
        self._underway = False
        self._generates = False

    @classmethod
    def of(cls, trainer: Trainer) -> "ForgetQuality":
        """The one of a trainer."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        return next(each for each in callbacks if isinstance(each, cls))

    @staticmethod
    def trajectory(trainer: Trainer) -> list[dict[str, Any]]:
        """The figures of all evaluations up to this step, as the first process finds them in metrics.jsonl.

        Later ones have been left by a run cut short, and are about to give way.
        """
        records = RunFolder(trainer.default_root_dir).read_metrics() if trainer.is_global_zero else []
        past = [each for each in records if each["step"] <= trainer.global_step]
        found: list[dict[str, Any]] = trainer.strategy.broadcast(past)
        return found

    def state_dict(self) -> dict[str, int]:
        # One that is underway is made again by a run that resumes from here.
        return {"evaluations": self._evaluations - self._underway}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._evaluations = state_dict["evaluations"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        sets = {each.name: each for each in _evaluation_sets(trainer)}
        for name in self.utility_sets:
            if name not in sets:
                raise InputError(
                    f"forget_quality.utility_sets names {name!r}, which is not measured (measured: "
                    f"{', '.join(sets)}): take it out, or add it to data.evaluate"
                )
        norms = [type(each).__name__ for each in self.measures if each.needs_gradient_norms]
        if norms and isinstance(trainer.strategy, FSDP2Strategy):
            raise InputError(
                f"forget_quality.measures: {norms[0]} asks for gradient norms, which are not taken of a model in shards: "
                "leave them out (gradient_norm false), or measure with trainer.strategy ddp"
            )
        limit = self.convention.rows
        for each in sets.values():
            if limit is not None and len(each.rows) > limit:
                raise InputError(
                    f"forget_quality.convention {self.convention.name} takes at most {limit} rows of a set, and "
                    f"{each.name} has {len(each.rows)}: set data.evaluation_rows to {limit}, or another convention"
                )
        if self.retain_result is None:
            if trainer.is_global_zero and stage == "fit" and FORGET in sets:
                rank_zero_info(
                    "Forget Quality needs a model that never saw the forget set: fit one (data.train_on: retain) "
                    "and give its run folder as forget_quality.retain_result. Without it, it is not reported."
                )
            return
        if FORGET not in sets:
            raise InputError(
                "forget_quality.retain_result is given, but data.evaluate leaves out the forget set"
            )
        self.retain = read_result(self.retain_result)
        check_comparable(
            self.retain, self.retain_result, self.convention.name, sets[FORGET].rows, self._settings(trainer)
        )

    def _settings(self, trainer: Trainer) -> dict[str, Any]:
        data = ForgetRetain.of(trainer)
        prompts = {"prompt": data.prompt} | {
            f"{each.name} prompt": each.prompt for each in data.evaluation_sets if each.prompt is not None
        }
        generation = {"max_new_tokens": self.max_new_tokens} if self.generate_every else {}
        return {
            **{
                name: f"{type(each).__name__} ({settings_fingerprint(each)[:8]})"
                for name, each in prompts.items()
            },
            **generation,
            **data.settings,
            **{k: v for each in self.measures for k, v in each.settings.items()},
        }

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._observed: list[dict[int, Observation]] = [{} for _ in _evaluation_sets(trainer)]
        self._waiting: dict[int, dict[tuple[int, int], list[int]]] = {}
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        self._evaluations += training
        self._underway = training
        last = training and trainer.global_step >= trainer.estimated_stepping_batches
        due = not training or last or self._evaluations % max(self.generate_every, 1) == 0
        self._generates = self.generate_every > 0 and due

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EvaluationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        module: Any = pl_module
        observations: list[Observation] = outputs["observations"]
        if not all(math.isfinite(nll) for each in observations for nll in each.nll):
            raise TrainingError(
                f"an answer's loss is not finite at step {trainer.global_step}: the model's weights are broken"
            )
        evaluation_set = _evaluation_sets(trainer)[dataloader_idx]
        if evaluation_set.name in (FORGET, HOLDOUT) and any(
            each.needs_gradient_norms for each in self.measures
        ):
            with trainer.precision_plugin.forward_context():
                norms = module.gradient_norms(batch)
            observations = [
                replace(each, gradient_norm=norm) for each, norm in zip(observations, norms, strict=True)
            ]
        # A row that a sampler repeats to fill a batch counts once.
        self._observed[dataloader_idx].update(zip(batch.rows.tolist(), observations, strict=True))
        length = evaluation_set.new_tokens
        length = self.max_new_tokens if length is None else length
        if self._generates and length:
            waiting = self._waiting.setdefault(length, {})
            waiting |= {
                (dataloader_idx, row): prompt
                for row, prompt in zip(batch.rows.tolist(), batch.prompts, strict=True)
            }
            if _due_on_any_rank(module, len(waiting) >= GENERATED_TOGETHER):
                self._generate(module, length)

    def _generate(self, module: Any, length: int) -> None:
        """Answers of at most this length to the rows that wait for one."""
        waiting = self._waiting.pop(length)
        # Lightning's hooks run outside the precision that its steps have.
        with module.trainer.precision_plugin.forward_context():
            texts = module.generate(list(waiting.values()), length)
        for (place, row), text in zip(waiting, texts, strict=True):
            observed = self._observed[place]
            observed[row] = replace(observed[row], generation=text)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.result = None
        sets = _evaluation_sets(trainer)
        for length in list(self._waiting):
            self._generate(pl_module, length)
        observed = [_of_all_ranks(each) for each in self._observed]
        if any(len(each) < len(known.rows) for each, known in zip(observed, sets, strict=True)):
            rank_zero_info(
                "only some rows were measured (a limit on batches is set): nothing is reported of them"
            )
            return
        answered = [
            Answered(
                known, [each[row] for row in range(len(known.rows))], self.convention, self._retain_set(known)
            )
            for known, each in zip(sets, observed, strict=True)
        ]
        # Every process computes the same: they would only wait for one that did it for all.
        self.result = measured(answered, self.measures, self.utility_sets, self.retain)
        self.result = replace(
            self.result,
            epoch=_epochs_done(trainer),
            step=trainer.global_step,
            settings=self._settings(trainer),
        )
        if self._generates or self.generate_every == 0:
            self.complete_step = trainer.global_step
        values = self.result.metrics
        if not trainer.sanity_checking:
            pl_module.log_dict(values, logger=False, sync_dist=True)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                named = {f"evaluation/{name}": value for name, value in values.items()}
                logger.log_metrics(named, trainer.global_step)
            self.result.save(RunFolder(trainer.default_root_dir))
            rank_zero_info(_summary(trainer.global_step, values))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._underway = False

    def _retain_set(self, evaluation_set: EvaluationSet) -> SetResult | None:
        """The retain-only model's result on these same rows, if that is what it holds under their name."""
        found = self.retain.sets.get(evaluation_set.name) if self.retain is not None else None
        if found is None or found.fingerprint != rows_fingerprint(evaluation_set.rows):
            return None
        return found


def _due_on_any_rank(module: Any, due: bool) -> bool:
    """Of a model in shards all ranks generate together."""
    if not is_sharded(module.language_model):
        return due
    anywhere = torch.tensor(due, dtype=torch.int32, device=module.device)
    torch.distributed.all_reduce(anywhere, torch.distributed.ReduceOp.MAX)
    return bool(anywhere)


def _of_all_ranks(observed: dict[int, Observation]) -> dict[int, Observation]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return observed
    gathered: list[dict[int, Observation]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, observed)
    return {row: each for some in gathered for row, each in some.items()}


def _evaluation_sets(trainer: Trainer) -> Sequence[EvaluationSet]:
    return ForgetRetain.of(trainer).evaluation_sets


def _epochs_done(trainer: Trainer) -> float:
    """Epochs of training behind the weights that are measured; a fraction within an epoch."""
    if not trainer.global_step:
        return 0.0
    steps_an_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return round(trainer.global_step / steps_an_epoch, 3)


def _summary(step: int, values: dict[str, float]) -> str:
    return f"step {step}: " + ", ".join(
        f"{title} {values[key]:.3g}" for title, key in headlines(values).items() if key in values
    )
