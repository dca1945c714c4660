"""What both trainings share: the policy, its optimizer, measuring answers and generating them."""

import math
from collections.abc import Set
from typing import Any, ClassVar, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel, get_scheduler

from dipo_pl.batch import EvaluationBatch
from dipo_pl.errors import InputError
from dipo_pl.losses.engine import Objective
from dipo_pl.metrics.observations import Observations
from dipo_pl.models.answer_scores import answer_scores
from dipo_pl.models.generation import generate
from dipo_pl.models.gradient_norm import gradient_norm
from dipo_pl.models.head import OutputHead
from dipo_pl.models.prompt_packing import row_states
from dipo_pl.models.source import ModelSource
from dipo_pl.storage.fingerprints import weights_fingerprint
from dipo_pl.strategies.fsdp import FSDP2Strategy

Schedule = Literal["linear", "cosine", "constant_with_warmup"]


class LanguageModel(LightningModule):
    """Holds the policy; a subclass says what a training step is.

    Args:
        policy: where the model comes from.
        optimizer: given the trained parameters.
        schedule: of the learning rate after the warm-up: `linear` or `cosine` to 0, or constant.
        warmup: share of all steps over which the learning rate rises from 0, in [0, 1).
        token_budget: answer positions whose logits exist at a time, each 4 bytes x vocabulary a few times
            over; null is 256 on a CPU and 1,024 on a GPU.
    """

    trains_on: ClassVar[tuple[str, ...]] = ()
    # Of a training batch with `train_on` pairs; the data module makes no others.
    sections: tuple[str, ...] = ("forget", "retain")

    def __init__(
        self,
        policy: ModelSource,
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=1e-5),
        schedule: Schedule = "linear",
        warmup: float = 0.1,
        token_budget: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= warmup < 1:
            raise InputError(f"model.warmup must be a share of the steps in [0, 1), got {warmup}")
        if token_budget is not None and token_budget < 1:
            raise InputError(f"model.token_budget must be at least 1, got {token_budget}")
        self.policy = policy
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup = warmup
        self.token_budget = token_budget
        self.model: PreTrainedModel | None = None
        self.frozen: frozenset[str] = frozenset()
        self.saved: frozenset[str] = frozenset()
        self.size = self.trained_size = 0
        self.frozen_weights: str | None = None
        # Of a policy that is to be trained, before a checkpoint is loaded.
        self.starting_weights: str | None = None
        self._is_trained = False

    def setup(self, stage: str) -> None:
        self._is_trained = stage == "fit"
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and self.policy.quantization is not None:
            raise InputError(
                f"model.policy.quantization is {self.policy.quantization}, and a quantised policy cannot be trained: "
                "leave it out, or measure with dipo-pl validate"
            )
        if stage == "fit" and data.train_on not in self.trains_on:
            raise InputError(
                f"{type(self).__name__} trains on {' or '.join(self.trains_on)}, and data.train_on is {data.train_on}"
            )

    @property
    def language_model(self) -> PreTrainedModel:
        if self.model is None:
            raise RuntimeError("the policy is used before configure_model() has loaded it")
        return self.model

    def configure_model(self) -> None:
        if self.model is not None:
            return
        strategy = None if self._trainer is None else self._trainer.strategy
        if isinstance(strategy, FSDP2Strategy):
            self.model = self.policy.prepare(strategy.load(self.policy.load))
            self._note_names()
            self.before_sharding(strategy)
            strategy.shard(self.model)
        else:
            self.model = self.policy.model()
            self._note_names()
        if self._is_trained:
            self.starting_weights = weights_fingerprint(self.model)
        if self.frozen:
            self.strict_loading = False
            frozen = (each for each in self.parameters() if not each.requires_grad)
            # Before anything moves or casts them.
            self.frozen_weights = weights_fingerprint(nn.ParameterList(frozen))
        self._refuse_rows_beyond_the_context()

    def before_sharding(self, strategy: FSDP2Strategy) -> None:
        """Called while the policy is whole on the first process."""

    def _refuse_rows_beyond_the_context(self) -> None:
        config: Any = self.language_model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None)
        data: Any = getattr(self._trainer, "datamodule", None)
        longest = getattr(data, "longest", 0)
        if context is not None and longest > context:
            raise InputError(
                f"the longest row has {longest} tokens and the model's context is {context}: set "
                f"data.max_length to {context} and data.too_long to truncate, or shorten the rows"
            )

    def _note_names(self) -> None:
        """While the policy is in one piece: which weights checkpoints hold, which they leave out, and how many there are."""
        named = self.named_parameters(remove_duplicate=False)
        self.frozen = frozenset(name for name, each in named if not each.requires_grad)
        self.saved = frozenset(self.state_dict()) - self.frozen
        self.size = sum(each.numel() for each in self.parameters())
        self.trained_size = sum(each.numel() for each in self.parameters() if each.requires_grad)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out the parameters that are not trained."""
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weights[name] for name in weights if name not in self.frozen}
        checkpoint["frozen_weights"] = self.frozen_weights
        checkpoint["starting_weights"] = self.starting_weights
        checkpoint["optimizer"] = self._optimizer

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lets in only what this policy would have saved.

        Raises:
            InputError: the checkpoint is of a policy that trains other weights, leaves others as they are, or started
                from others; or of another optimizer.
        """
        given, wanted = set(checkpoint["state_dict"]), self.saved
        if given != wanted:
            raise InputError(
                f"the checkpoint is of another policy: of the weights trained here it lacks {_some(wanted - given)}, "
                f"and of its own {_some(given - wanted)} are not trained here; see model.policy and its adapter"
            )
        if checkpoint.get("frozen_weights") != self.frozen_weights:
            raise InputError(
                f"the weights of {self.policy.source} that are not trained are not those that the checkpoint was "
                "trained on: give that model, or another --name to begin anew"
            )
        start = checkpoint.get("starting_weights")
        if self._is_trained and start not in (None, self.starting_weights):
            raise InputError(
                f"the weights of {self.policy.source} are not those that the checkpoint's training started from: give that "
                "model, or another --name to begin anew"
            )

        optimizer = checkpoint.get("optimizer")
        if self._is_trained and optimizer not in (None, self._optimizer):
            raise InputError(
                f"model.optimizer is {self._optimizer}, and the checkpoint is of {optimizer}, which keeps other moments: "
                "set that one"
            )

    @property
    def _optimizer(self) -> str:
        return type(self.optimizer([nn.Parameter(torch.zeros(1))])).__name__

    def on_fit_start(self) -> None:
        # from_pretrained leaves a model in eval mode, and Lightning trains a module in the mode it is in.
        self.language_model.train()

    def of_step(self, loss: Tensor, batch_idx: int) -> Tensor:
        """The loss so that its mean over what a trainer accumulates is that of the optimizer step."""
        weight = self.step_weight(batch_idx)
        return loss if weight == 1 else weight * loss

    def step_weight(self, batch_idx: int) -> float:
        """What a batch counts in that mean."""
        data: Any = getattr(self._trainer, "datamodule", None)
        return 1.0 if data is None else float(data.loss_weight(batch_idx))

    def log_objective(self, name: str, objective: Objective, sequences: int) -> None:
        values = {f"train/{name}": objective.loss.detach()}
        values |= {f"train/{name}_{part}": value for part, value in objective.parts.items()}
        self.log_dict(values, batch_size=sequences)

    def validation_step(
        self, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Observations]:
        """Return what the policy makes of every row's answers, under `observations`."""
        answers = batch.answers
        first = torch.tensor([row in batch.originals for row in range(len(answers.lengths))])
        detailed = torch.repeat_interleave(first, torch.tensor(answers.lengths)).to(answers.targets.device)
        nll, tokens = answer_scores(
            row_states(self.language_model, answers, len(batch.rows)),
            answers.targets,
            answers.lengths,
            OutputHead.of(self.language_model).gathered(),
            detailed,
            self.token_budget,
        )
        return {"observations": Observations.of(batch, nll, tokens)}

    def gradient_norms(self, batch: EvaluationBatch) -> list[float]:
        """Of each row's original answer; see `dipo_pl.models.gradient_norm`."""
        answers = batch.answers
        norms = []
        for row, closing in zip(batch.originals, batch.closing, strict=True):
            length = int(answers.attention_mask[row].sum())
            answer = slice(length - answers.lengths[row], length - closing)
            norms.append(gradient_norm(self.language_model, answers.input_ids[row, :length], answer))
        return norms

    def generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
        """Greedy continuations of the prompts, as text."""
        return generate(self.language_model, self.policy.tokenizer(), prompts, max_new_tokens)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer([each for each in self.parameters() if each.requires_grad])
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise InputError("training has no end: set trainer.max_epochs or trainer.max_steps")
        steps = int(steps)
        scheduler = get_scheduler(self.schedule, optimizer, round(self.warmup * steps), steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "learning_rate"},
        }


def _some(names: Set[str]) -> str:
    """`none`, or how many and which is first."""
    return f"{len(names)} ({min(names)}, ...)" if names else "none"
