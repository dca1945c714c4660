"""Unlearning: a policy and its frozen reference, a forget loss and a retain loss."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.optim import AdamW

from dipo_pl.batch import Batch
from dipo_pl.errors import InputError
from dipo_pl.losses.base import Loss
from dipo_pl.losses.dipo import DiPO, DiPORetain
from dipo_pl.losses.engine import Section, joint_objective
from dipo_pl.losses.retain_weight import DualWeight
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import Layer, answer_states, decoder_layer
from dipo_pl.models.source import ModelSource
from dipo_pl.modules.base import LanguageModel, Schedule
from dipo_pl.preferences.constructors import LogitModulation, PreferenceConstructor
from dipo_pl.references.adapter_off import AdapterOff
from dipo_pl.references.base import Reference, ReferenceContext
from dipo_pl.references.frozen_copy import FrozenCopy
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.strategies.fsdp import FSDP2Strategy


class Unlearning(LanguageModel):
    r"""Makes the policy forget the forget rows and keep the retain rows, in one forward pass of both a step.

        L = forget_loss + retain_weight * retain_loss

    Args:
        policy: the model that is to forget.
        forget_loss: on forget rows.
        retain_loss: on retain rows; null is none, which few methods survive.
        retain_weight: lambda, >= 0 (1 in the paper), or a DualWeight, which follows the retain loss.
        constructor: builds DiPO's preference pair, for both losses; null is LogitModulation.
        reference: the frozen model that losses compare with; null is AdapterOff where the policy has an
            adapter, else FrozenCopy. Where neither loss uses one, none is made.
        optimizer, schedule, warmup, token_budget: see LanguageModel.
    """

    trains_on = ("pairs",)

    def __init__(
        self,
        policy: ModelSource,
        forget_loss: Loss,
        retain_loss: Loss | None,
        retain_weight: DualWeight | float = 1.0,
        constructor: PreferenceConstructor | None = None,
        reference: Reference | None = None,
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=1e-5),
        schedule: Schedule = "linear",
        warmup: float = 0.1,
        token_budget: int | None = None,
    ) -> None:
        super().__init__(policy, optimizer, schedule, warmup, token_budget)
        if isinstance(retain_weight, DualWeight):
            if retain_loss is None:
                raise InputError(
                    "model.retain_weight is a DualWeight, which follows the retain loss, and model.retain_loss is "
                    "null: give a retain loss, or a number as the weight"
                )
        elif not 0 <= retain_weight < math.inf:
            raise InputError(f"model.retain_weight must be a finite number >= 0, got {retain_weight}")
        self.forget_loss = forget_loss
        self.retain_loss = retain_loss
        if type(self.forget_loss) is DiPORetain or type(retain_loss) is DiPO:
            raise InputError(
                "DiPO prefers the forgetting distribution and DiPORetain the remembering one: "
                "set model.forget_loss to DiPO and model.retain_loss to DiPORetain"
            )
        if retain_loss is not None and retain_loss.companions:
            raise InputError(
                f"model.retain_loss: {type(retain_loss).__name__} compares a row with its {retain_loss.companions[0]}, "
                "which only forget rows have"
            )
        self.retain_weight = retain_weight
        self.constructor = constructor or LogitModulation()
        for loss in (self.forget_loss, self.retain_loss):
            if isinstance(loss, DiPO) and loss.shares_constructor:
                loss.constructor = self.constructor
        self.reference = reference or (FrozenCopy() if policy.adapter is None else AdapterOff())
        self._only_measures = False

    @property
    def sections(self) -> tuple[str, ...]:  # type: ignore[override]
        """Of a training batch: only what a loss looks at."""
        retain = () if self.retain_loss is None else ("retain",)
        return ("forget", *self.forget_loss.companions, *retain)

    @property
    def losses(self) -> dict[str, Loss]:
        """By the rows they act on."""
        retain = {} if self.retain_loss is None else {"retain": self.retain_loss}
        return {"forget": self.forget_loss, **retain}

    @property
    def layers(self) -> set[Layer]:
        return {loss.layer for loss in self.losses.values()}

    @property
    def reference_layers(self) -> set[Layer]:
        return {loss.layer for loss in self.losses.values() if loss.uses_reference}

    @property
    def reference_sections(self) -> tuple[str, ...]:
        """Those that a loss compares with the reference."""
        used = {
            name
            for rows, loss in self.losses.items()
            if loss.uses_reference
            for name in (rows, *loss.companions)
        }
        return tuple(name for name in self.sections if name in used)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._only_measures = stage != "fit"
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy) and None not in self.layers:
            # No loss reaches the layers after those that it looks at, and DDP would wait for their gradients.
            strategy._ddp_kwargs["find_unused_parameters"] = True

    def configure_model(self) -> None:
        if self.model is not None:
            return
        super().configure_model()
        for layer in self.layers:
            # Refused now, not after the first measurement.
            if layer is not None:
                decoder_layer(self.language_model, layer)
        if self._compares:
            # Before a checkpoint is loaded: the reference is the policy as it started.
            self.reference.attach(self.language_model, self._reference_context())

    def before_sharding(self, strategy: FSDP2Strategy) -> None:
        if self._compares:
            self.reference.shard(self.language_model, strategy.shard)

    @property
    def _compares(self) -> bool:
        return bool(self.reference_layers) and not self._only_measures

    def _reference_context(self) -> ReferenceContext:
        trainer: Any = self.trainer
        sequences = trainer.datamodule.training_sequences
        return ReferenceContext(
            layers=self.reference_layers,
            sequences={name: sequences[name] for name in self.reference_sections},
            identity=trainer.datamodule.identity,
            folder=RunFolder.of(trainer).path,
            device=trainer.strategy.root_device,
            precision=trainer.precision_plugin.forward_context,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            barrier=trainer.strategy.barrier,
        )

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        self.reference.apply(fn)
        super()._apply(fn, recurse)
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        states = answer_states(self.language_model, batch, self.layers)
        references, compared = {}, batch.only(self.reference_sections)
        if self.reference_layers:
            references = self.reference.states(compared, self.reference_layers)
        slices, compared_slices = batch.section_slices(), compared.section_slices()
        sections = {}
        for name, loss in self.losses.items():
            members = (name, *loss.companions)
            parts = [slices[each] for each in members]
            reference = None
            if loss.uses_reference:
                reference = _joined(references[loss.layer], [compared_slices[each] for each in members])
            sections[name] = Section(
                loss,
                _joined(states[loss.layer], parts),
                _joined(batch.targets, parts),
                [length for rows, _ in parts for length in batch.lengths[rows]],
                reference,
                self._weight(name),
            )
        objective = joint_objective(
            sections,
            OutputHead.of(self.language_model),
            self.reference.head if references else None,
            self.token_budget,
        )
        for name, part in objective.sections.items():
            self.log_objective(name, part, batch.sections[name])
        if isinstance(self.retain_weight, DualWeight):
            self.log("train/retain_weight", self.retain_weight.value)
            self.retain_weight.observe(objective.sections["retain"].loss, self.step_weight(batch_idx))
        self.log("train/loss", objective.loss.detach(), prog_bar=True, batch_size=batch.sections["forget"])
        return self.of_step(objective.loss, batch_idx)

    def _weight(self, name: str) -> float:
        if name != "retain":
            return 1.0
        return self.retain_weight.value if isinstance(self.retain_weight, DualWeight) else self.retain_weight

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if isinstance(self.retain_weight, DualWeight):
            self.retain_weight.update(self.current_epoch, self.trainer.strategy.reduce)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if isinstance(self.retain_weight, DualWeight):
            checkpoint["retain_weight"] = self.retain_weight.value

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if isinstance(self.retain_weight, DualWeight) and "retain_weight" in checkpoint:
            self.retain_weight.value = checkpoint["retain_weight"]


def _joined(tensor: Tensor, parts: Sequence[tuple[slice, slice]]) -> Tensor:
    """The positions of a section and of its companions."""
    pieces = [tensor[tokens] for _, tokens in parts]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
