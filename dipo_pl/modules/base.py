"""Base of both kinds of training: holds the policy and its optimizer, measures answers and generates them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from dipo_pl.batch import EvaluationBatch
from dipo_pl.connection import TrainingData
from dipo_pl.errors import InputError, check_count, check_objects, check_share
from dipo_pl.losses.engine import Objective
from dipo_pl.metrics.observations import Observations
from dipo_pl.models.compiled_layers import compile_layers, uncompiled
from dipo_pl.models.generation import generate
from dipo_pl.models.gradient_norm import gradient_norm
from dipo_pl.models.source import ModelSource
from dipo_pl.models.trainable import check_patterns, train_only
from dipo_pl.models.weight_sample import check_trained_dtype, sampled
from dipo_pl.modules.fused_update import fused_update
from dipo_pl.private_names import trainer_of
from dipo_pl.storage.checkpoints import FORMAT, FORMAT_KEY
from dipo_pl.storage.fingerprints import weights_fingerprint
from dipo_pl.strategies.fsdp import FSDP2Strategy

Schedule = Literal["linear", "cosine", "constant_with_warmup"]


class LanguageModule(LightningModule, ABC):
    """LightningModule that holds a language model; a subclass defines its training step.

    Args:
        policy: where the model comes from.
        optimizer: called with the trained parameters. Adam and AdamW take torch's fused update, which differs by float
            rounding, unless `fused` or `foreach` is given; see `fused_update`.
        schedule: of the learning rate after the warm-up: `linear` or `cosine` to 0, or constant.
        warmup: share of all optimizer steps over which the learning rate rises from 0, in [0, 1).
        token_budget: answer positions whose logits exist at a time, each 4 bytes x vocabulary a few times
            over; null is 256 on a CPU and 1,024 on a GPU.
        trainable: regular expressions of whole names of weights (`model.layers.(5|6|7).mlp.down_proj.weight`): only
            matching weights are trained; null trains all.
    """

    trains_on: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        policy: ModelSource,
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=1e-5),
        schedule: Schedule = "linear",
        warmup: float = 0.1,
        token_budget: int | None = None,
        trainable: list[str] | None = None,
    ) -> None:
        super().__init__()
        check_objects("model", policy=policy)
        check_share("model.warmup", warmup, zero=True, one=False)
        check_count("model.token_budget", token_budget)
        if trainable is not None:
            check_patterns(trainable)
            if policy.adapter is not None:
                raise InputError(
                    f"model.trainable is {trainable} and model.policy.adapter trains adapters alone: leave one of them out, "
                    "and choose layers for adapters by model.policy.adapter.targets"
                )
        initialization = None if policy.adapter is None else policy.adapter.initialization
        if initialization is not None and "pairs" not in self.trains_on:
            raise InputError(
                "model.policy.adapter.initialization is FILA, which needs forget and retain rows, and "
                f"{type(self).__name__} has none apart: leave it out"
            )
        self.policy = policy
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup = warmup
        self.token_budget = token_budget
        self.trainable = trainable
        self.model: PreTrainedModel | None = None
        # Names of parameters that are not trained, and of those that checkpoints hold.
        self.frozen: frozenset[str] = frozenset()
        self.saved: frozenset[str] = frozenset()
        self.size = self.trained_size = 0
        self.frozen_weights: str | None = None
        # Fingerprint of the weights before training and before a checkpoint is loaded.
        self.starting_weights: str | None = None
        # Evenly spaced values of the trained ones among them.
        self.starting_sample: dict[str, Tensor] = {}
        self._is_trained = False
        self._data: TrainingData | None = None

    @property
    @abstractmethod
    def sections(self) -> Mapping[str, tuple[str, ...]]:
        """Kinds of sequences in each section of a training batch."""

    def tokenizer(self, texts: Iterable[str] = ()) -> PreTrainedTokenizerBase:
        """Return the policy's tokenizer; one that does not exist yet is trained on `texts`."""
        return self.policy.tokenizer(texts)

    def connect(self, data: TrainingData) -> None:
        """Receive the data module, which calls this in its own `setup`."""
        self._data = data

    @property
    def data(self) -> TrainingData:
        """The data module; RuntimeError if none has been connected."""
        if self._data is None:
            raise RuntimeError("no data module is connected: call trainer.fit(module, datamodule=...)")
        return self._data

    def setup(self, stage: str) -> None:
        """Refuse what a policy cannot be trained with.

        Raises:
            InputError: the policy is quantized, or is to be compiled and there are several devices.
        """
        self._is_trained = stage == "fit"
        if stage == "fit" and self.policy.quantization is not None:
            raise InputError(
                f"model.policy.quantization is {self.policy.quantization}, and a quantized policy cannot be trained: "
                "leave it out, or measure with dipo-pl validate"
            )
        if stage == "fit" and self.policy.compile and self.trainer.world_size > 1:
            raise InputError(
                f"model.policy.compile is true, and training is on {self.trainer.world_size} devices, for which layers are "
                "not compiled: leave it out, or train on one"
            )

    @property
    def language_model(self) -> PreTrainedModel:
        """The policy's model; RuntimeError if it has not been loaded yet."""
        if self.model is None:
            raise RuntimeError("the policy is used before configure_model() has loaded it")
        return self.model

    def configure_model(self) -> None:
        """Load the policy, once."""
        if self.model is not None:
            return
        trainer = trainer_of(self)
        strategy = None if trainer is None else trainer.strategy
        if isinstance(strategy, FSDP2Strategy):
            self.model = self.policy.prepare(strategy.load(self.policy.load))
            self._freeze()
            self._record_names()
            self.before_sharding(strategy)
            strategy.shard(self.model)
        else:
            self.model = self.policy.model()
            self._freeze()
            self.before_training()
            self._record_names()
            if self.policy.compile and strategy is not None and self._is_trained:
                compile_layers(self.model, strategy.root_device)
        if self._is_trained:
            self.starting_weights = weights_fingerprint(self.model)
            self.starting_sample = sampled(self.trained_weights)
        if self.frozen:
            self.strict_loading = False
            frozen = (each for each in self.parameters() if not each.requires_grad)
            # The fingerprint is taken before anything moves or casts the weights.
            self.frozen_weights = weights_fingerprint(nn.ParameterList(frozen))
        self._refuse_rows_beyond_the_context()

    def _freeze(self) -> None:
        if self.trainable is not None:
            summary = train_only(self.language_model, self.trainable)
            if self._is_trained:
                rank_zero_info(summary)

    def before_training(self) -> None:
        """Change the whole policy before anything is recorded of it; nothing by default."""

    def before_sharding(self, strategy: FSDP2Strategy) -> None:
        """Do what needs the whole policy on the first rank; nothing by default."""

    def _refuse_rows_beyond_the_context(self) -> None:
        config: Any = self.language_model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None)
        longest = 0 if self._data is None else self._data.longest
        if context is not None and longest > context:
            raise InputError(
                f"the longest row has {longest} tokens and the model's context is {context}: set "
                f"data.max_length to {context} and data.too_long to truncate, or shorten the rows"
            )

    def _record_names(self) -> None:
        """Record which weights checkpoints hold and how many there are, while the policy is not sharded."""
        named = self.named_parameters(remove_duplicate=False)
        self.frozen = frozenset(name for name, each in named if not each.requires_grad)
        self.saved = frozenset(self.state_dict()) - self.frozen
        self.size = sum(each.numel() for each in self.parameters())
        self.trained_size = sum(each.numel() for each in self.parameters() if each.requires_grad)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the parameters that are not trained, and add what a resumed run is checked against."""
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weights[name] for name in weights if name not in self.frozen}
        checkpoint[FORMAT_KEY] = FORMAT
        checkpoint["frozen_weights"] = self.frozen_weights
        checkpoint["starting_weights"] = self.starting_weights
        checkpoint["optimizer"] = self._optimizer_name

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what this policy would not have saved.

        Raises:
            InputError: the checkpoint's policy trains other weights, has other frozen ones, or started from others; or
                its optimizer is another one.
        """
        given, source = set(checkpoint["state_dict"]), self.policy.source
        if given != self.saved:
            raise InputError(
                f"the checkpoint is of another policy: it lacks {_counted(self.saved - given)} of the weights trained here, "
                f"and {_counted(given - self.saved)} of its weights are not trained here: see model.policy, its adapter and "
                "model.trainable"
            )
        advice = "set model.policy to that model, or start a new run with another --name"
        if checkpoint.get("frozen_weights") != self.frozen_weights:
            raise InputError(
                f"the frozen weights of {source} are not those that the checkpoint was trained with: {advice}"
            )
        if not self._is_trained:
            return
        if checkpoint.get("starting_weights") not in (None, self.starting_weights):
            raise InputError(
                f"the weights of {source} are not those that the checkpoint's training started from: {advice}"
            )
        if (optimizer := checkpoint.get("optimizer")) not in (None, self._optimizer_name):
            raise InputError(
                f"model.optimizer is {self._optimizer_name}, and the checkpoint has the state of {optimizer}: set "
                f"model.optimizer to {optimizer}"
            )

    @property
    def _optimizer_name(self) -> str:
        return type(self.optimizer([nn.Parameter(torch.zeros(1))])).__name__

    @property
    def trained_weights(self) -> dict[str, nn.Parameter]:
        """The weights that are trained, by their names in the model."""
        return {name: each for name, each in self.language_model.named_parameters() if each.requires_grad}

    @property
    def learning_rate(self) -> float:
        """Largest learning rate of the schedule; the trainer must have made its optimizers."""
        groups = self.trainer.optimizers[0].param_groups
        return float(max(group.get("initial_lr", group["lr"]) for group in groups))

    def on_fit_start(self) -> None:
        """Put the model into train mode: from_pretrained leaves it in eval mode, and Lightning keeps the mode.

        Raises:
            InputError: the trained weights are float16.
        """
        self.language_model.train()
        check_trained_dtype(self.trained_weights, self.learning_rate)

    def step_weight(self, batch_idx: int) -> float:
        """Return the factor on a batch's loss that makes the trainer's mean over a step that over its rows."""
        return 1.0 if self._data is None else self._data.loss_weight(batch_idx)

    def weighted(self, loss: Tensor, batch_idx: int) -> Tensor:
        """Return the loss times `step_weight`."""
        weight = self.step_weight(batch_idx)
        return loss if weight == 1 else weight * loss

    def log_objective(self, name: str, objective: Objective, rows: int) -> None:
        """Log a loss as train/NAME_loss, or train/loss for the name `loss`, and its parts as train/NAME_PART."""
        values = {f"train/{name if name == 'loss' else f'{name}_loss'}": objective.loss.detach()}
        values |= {f"train/{name}_{part}": value for part, value in objective.parts.items()}
        self.log_dict(values, batch_size=rows)

    def validation_step(
        self, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Observations]:
        """Return scores of every row's answers, under `observations`."""
        with self.uncompiled():
            return {"observations": Observations.of_model(self.language_model, batch, self.token_budget)}

    def gradient_norms(self, batch: EvaluationBatch) -> list[float]:
        """Return the gradient norm of each row's original answer; see `dipo_pl.models.gradient_norm`."""
        answers = batch.answers
        norms = []
        with self.uncompiled():
            for row, closing in zip(batch.originals, batch.closing, strict=True):
                length = int(answers.attention_mask[row].sum())
                answer = slice(length - answers.lengths[row], length - closing)
                norms.append(gradient_norm(self.language_model, answers.input_ids[row, :length], answer))
        return norms

    def generate(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        ended: Callable[[int], None] = lambda count: None,
        known: list[list[int]] | None = None,
    ) -> list[str]:
        """Return greedy continuations of the prompts, as text; see `dipo_pl.models.generation.generate`."""
        tokenizer = self.policy.tokenizer()
        with self.uncompiled():
            return generate(self.language_model, tokenizer, prompts, max_new_tokens, ended=ended, known=known)

    def uncompiled(self) -> AbstractContextManager[Any]:
        """Return a context in which the policy runs as it is written, for whatever is not training."""
        # Asking torch's compiler imports it, which takes a second.
        return uncompiled() if self.policy.compile else nullcontext()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer of the trained parameters and its learning-rate schedule.

        Raises:
            InputError: the number of steps is not limited.
        """
        optimizer = fused_update(self.optimizer([each for each in self.parameters() if each.requires_grad]))
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise InputError("training has no end: set trainer.max_epochs or trainer.max_steps")
        steps = int(steps)
        scheduler = get_scheduler(self.schedule, optimizer, round(self.warmup * steps), steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "learning_rate"},
        }


def _counted(names: Set[str]) -> str:
    """Return `none`, or the number of names and the first one."""
    return f"{len(names)} ({min(names)}, ...)" if names else "none"
