"""Unlearning: a policy and its frozen reference, a forget loss and a retain loss."""

from collections.abc import Callable
from typing import Any, Self

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from dipo_pl.batch import Batch
from dipo_pl.constructors import LogitModulation, PreferenceConstructor
from dipo_pl.errors import InputError
from dipo_pl.language_model import LanguageModel, Schedule
from dipo_pl.losses.base import Loss
from dipo_pl.losses.dipo import DiPO, DiPORetain
from dipo_pl.policy import Policy
from dipo_pl.reference import FrozenCopy, Reference


class Unlearning(LanguageModel):
    r"""Makes the policy forget the forget rows and keep the retain rows, in one forward pass of both a step.

        L = forget_loss + retain_weight * retain_loss

    Args:
        policy: the model that is to forget.
        forget_loss: on forget rows.
        retain_loss: on retain rows; null is none, which few methods survive.
        retain_weight: lambda, >= 0 (1 in the paper).
        constructor: builds DiPO's preference pair, for both losses; null is LogitModulation.
        reference: the frozen model that losses compare with; null is FrozenCopy. Where neither loss uses
            one, none is made.
        optimizer, schedule, warmup, token_budget: see LanguageModel.
    """

    trains_on = ("pairs",)

    def __init__(
        self,
        policy: Policy,
        forget_loss: Loss,
        retain_loss: Loss | None,
        retain_weight: float = 1.0,
        constructor: PreferenceConstructor | None = None,
        reference: Reference | None = None,
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=1e-5),
        schedule: Schedule = "linear",
        warmup: float = 0.1,
        token_budget: int = 512,
    ) -> None:
        super().__init__(policy, optimizer, schedule, warmup, token_budget)
        if not retain_weight >= 0:
            raise InputError(f"model.retain_weight must be >= 0, got {retain_weight}")
        self.forget_loss = forget_loss
        self.retain_loss = retain_loss
        if type(self.forget_loss) is DiPORetain or type(retain_loss) is DiPO:
            raise InputError(
                "DiPO prefers the forgetting distribution and DiPORetain the remembering one: "
                "set model.forget_loss to DiPO and model.retain_loss to DiPORetain"
            )
        self.retain_weight = retain_weight
        self.constructor = constructor or LogitModulation()
        for loss in (self.forget_loss, self.retain_loss):
            if isinstance(loss, DiPO) and loss.constructor is None:
                loss.constructor = self.constructor
        self.reference = reference or FrozenCopy()
        self._only_measures = False

    @property
    def uses_reference(self) -> bool:
        return self.forget_loss.uses_reference or (
            self.retain_loss is not None and self.retain_loss.uses_reference
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._only_measures = stage != "fit"

    def configure_model(self) -> None:
        if self.model is not None:
            return
        super().configure_model()
        if self.uses_reference and not self._only_measures:
            # Before a checkpoint is loaded: the reference is the policy as it started.
            self.reference.attach(self.language_model)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        self.reference.apply(fn)
        super()._apply(fn, recurse)
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        states = self.states(batch)
        reference_states = reference_head = None
        if self.uses_reference:
            reference_states, reference_head = self.reference.states(batch), self.reference.head
        forget = self.objective(self.forget_loss, batch, "forget", states, reference_states, reference_head)
        self.log_objective("forget", forget, batch.sections["forget"])
        total = forget.loss
        if self.retain_loss is not None and self.retain_weight > 0:
            retain = self.objective(
                self.retain_loss, batch, "retain", states, reference_states, reference_head
            )
            self.log_objective("retain", retain, batch.sections["retain"])
            total = total + self.retain_weight * retain.loss
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=batch.sections["forget"])
        return total
