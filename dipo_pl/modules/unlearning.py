"""Unlearning: a forget loss and a retain loss of policy and reference, and a scheme that makes one gradient of both.

From batch to loss: `data_modules.forget_retain` (pairs), `batch` (sections), this file, `steps.base`, `references.base`,
`losses.base`, `losses.engine` (groups), and the loss's own file.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, ClassVar, Self

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import AdamW

from dipo_pl.batch import Batch
from dipo_pl.errors import InputError, check_number, check_objects
from dipo_pl.losses.base import Loss, Section
from dipo_pl.losses.dipo import DiPO, DiPORetain
from dipo_pl.losses.engine import JointObjective, joint_objective
from dipo_pl.losses.retain_weight import FixedWeight, RetainWeight
from dipo_pl.models.eval_mode import noise_settings, without_noise
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import Layer, answer_states, decoder_layer
from dipo_pl.models.source import ModelSource
from dipo_pl.models.trainable import check_reached
from dipo_pl.modules.base import LanguageModule, Schedule
from dipo_pl.preferences.constructors import LogitModulation, PreferenceConstructor
from dipo_pl.private_names import find_unused_parameters
from dipo_pl.references.adapter_off import AdapterOff
from dipo_pl.references.base import Reference, ReferenceContext
from dipo_pl.references.frozen_copy import FrozenCopy
from dipo_pl.steps.base import StepScheme
from dipo_pl.steps.joint import JointStep
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.strategies.fsdp import FSDP2Strategy


class Unlearning(LanguageModule):
    r"""Makes the policy forget the forget rows and keep the retain rows.

        L = forget_loss + retain_weight * retain_loss + forget_entropy * H(forget) + retain_entropy * H(retain)

    with H the mean entropy of next-token distributions at the answers (`Entropy`). With `forget_until`, each forget row s
    has a weight in forget_loss, a constant in the gradient:

        w_s = max(0, 1 - nll_s / forget_until),   nll_s = -(1 / n_s) log p(y_s), in nats a token

    so that a row is let alone once it is as unlikely as text that the model has never seen: what is less likely still gives
    itself away to membership inference.

    Args:
        policy: the model that is to forget.
        forget_loss: on forget rows.
        retain_loss: on retain rows; null is none, which few methods survive.
        retain_weight: lambda, >= 0 (1 in the paper), or a DualWeight, which follows the retain loss.
        forget_entropy: lambda_f, weight of the entropy on forget rows; 0 leaves it out.
        retain_entropy: lambda_r, weight of the entropy on retain rows; needs a retain loss.
        forget_until: loss of unseen text, > 0: -ln of `holdout_probability` in the evaluation before training, with
            data.holdout. Not from a paper; null gives every row its whole weight. Costs one more product of the forget
            answers with the head.
        constructor: builds DiPO's preference pair, for both losses; null is LogitModulation.
        reference: the frozen model that losses compare with; null is AdapterOff where the policy has an
            adapter, else FrozenCopy. Where neither loss uses one, none is made.
        step: how the gradients of both losses become that of a step; null is JointStep, the gradient of L.
        dropout: train with the dropout and other noise that the model's configuration has; else policy and reference are
            compared under the same conditions.
        optimizer, schedule, warmup, token_budget, trainable: see LanguageModule.
    """

    trains_on: ClassVar[tuple[str, ...]] = ("pairs",)

    def __init__(
        self,
        policy: ModelSource,
        forget_loss: Loss,
        retain_loss: Loss | None,
        retain_weight: RetainWeight | float = 1.0,
        constructor: PreferenceConstructor | None = None,
        reference: Reference | None = None,
        step: StepScheme | None = None,
        dropout: bool = False,
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=1e-5),
        schedule: Schedule = "linear",
        warmup: float = 0.1,
        token_budget: int | None = None,
        trainable: list[str] | None = None,
        forget_entropy: float = 0.0,
        retain_entropy: float = 0.0,
        forget_until: float | None = None,
    ) -> None:
        check_objects(
            "model",
            forget_loss=forget_loss,
            retain_loss=retain_loss,
            retain_weight=retain_weight,
            constructor=constructor,
            reference=reference,
            step=step,
        )
        super().__init__(policy, optimizer, schedule, warmup, token_budget, trainable)
        self.retain_weight = (
            retain_weight if isinstance(retain_weight, RetainWeight) else FixedWeight(retain_weight)
        )
        self.losses = {"forget": forget_loss} | ({} if retain_loss is None else {"retain": retain_loss})
        check_number("model.forget_entropy", forget_entropy)
        check_number("model.retain_entropy", retain_entropy)
        self.entropies = {"forget": forget_entropy, "retain": retain_entropy}
        check_number("model.forget_until", forget_until, above=0)
        self.forget_until = forget_until
        self.constructor = constructor or LogitModulation()
        changes_base = policy.adapter is not None and policy.adapter.initialization is not None
        if changes_base and isinstance(reference, AdapterOff):
            raise InputError(
                "model.reference is AdapterOff, and with model.policy.adapter.initialization FILA the policy without "
                "adapters is not the model before training: set model.reference to FrozenCopy or StoredStates"
            )
        if changes_base and retain_loss is None:
            raise InputError(
                "model.policy.adapter.initialization FILA compares forget rows with retain rows, and model.retain_loss is "
                "null, so that no retain rows are read: give a retain loss, or leave the initialization out"
            )
        has_start = policy.adapter is not None and not changes_base
        self.reference = reference or (AdapterOff() if has_start else FrozenCopy())
        self.step = step or JointStep()
        self.dropout = dropout
        if policy.adapter is not None and policy.adapter.dropout and not dropout:
            raise InputError(
                f"model.policy.adapter.dropout is {policy.adapter.dropout}, and model.dropout false trains without dropout: "
                "set model.dropout to true, or model.policy.adapter.dropout to 0"
            )
        self._check_losses()
        for loss in self.losses.values():
            if isinstance(loss, DiPO) and loss.shares_constructor:
                loss.constructor = self.constructor

    def _check_losses(self) -> None:
        forget, retain = self.losses["forget"], self.losses.get("retain")
        if retain is None and self.retain_weight.needs_retain_loss:
            raise InputError(
                f"model.retain_weight is a {type(self.retain_weight).__name__}, which follows the retain loss, and "
                "model.retain_loss is null: give a retain loss, or a number as the weight"
            )
        if retain is None and self.step.needs_retain_loss:
            raise InputError(
                f"model.step is {type(self.step).__name__}, which needs the gradient of a retain loss, and "
                "model.retain_loss is null: give a retain loss, or set model.step to null"
            )
        if type(forget) is DiPORetain or type(retain) is DiPO:
            raise InputError(
                "DiPO prefers the forgetting distribution and DiPORetain the remembering one: "
                "set model.forget_loss to DiPO and model.retain_loss to DiPORetain"
            )
        may_be_0 = self.retain_weight.value == 0 or self.retain_weight.needs_retain_loss
        if self.step.separate and self.entropies["retain"] and may_be_0:
            raise InputError(
                f"model.retain_entropy is {self.entropies['retain']:g} and the retain weight 0 or a DualWeight, which may "
                f"become 0: {type(self.step).__name__} then leaves out the retain rows; set model.retain_weight to a number "
                "> 0"
            )
        for name, weight in self.entropies.items():
            loss = self.losses.get(name)
            if weight and (loss is None or loss.layer is not None):
                why = (
                    "is null"
                    if loss is None
                    else f"is {type(loss).__name__}, which acts on a layer's hidden states"
                )
                raise InputError(
                    f"model.{name}_entropy is {weight:g} and model.{name}_loss {why}: the entropy stands beside a loss of "
                    f"logits on these rows; set model.{name}_entropy to 0, or give another loss"
                )
        if self.forget_until is not None and (forget.layer is not None or forget.selects):
            raise InputError(
                f"model.forget_until is {self.forget_until:g} and model.forget_loss is {type(forget).__name__}, which acts "
                "on a layer's hidden states or chooses positions by itself, and has no weights of rows: set "
                "model.forget_until to null, or give another loss"
            )
        if retain is not None and retain.companions:
            raise InputError(
                f"model.retain_loss: {type(retain).__name__} compares a row with its {retain.companions[0]}, "
                "which only forget rows have"
            )

    @property
    def sections(self) -> dict[str, tuple[str, ...]]:
        """Kinds of sequences in each section of a training batch: only those that a loss uses."""
        return {name: (name, *loss.companions) for name, loss in self.losses.items()}

    @property
    def layers(self) -> set[Layer]:
        """Layers whose states losses use."""
        return {loss.layer for loss in self.losses.values()}

    @property
    def compared(self) -> dict[str, Loss]:
        """Losses that use the reference, by section."""
        return {name: loss for name, loss in self.losses.items() if loss.uses_reference}

    @property
    def reference_layers(self) -> set[Layer]:
        """Layers whose reference states losses use."""
        return {loss.layer for loss in self.compared.values()}

    @property
    def reference_kinds(self) -> tuple[str, ...]:
        """Kinds of sequences that losses compare with the reference."""
        return tuple(kind for name in self.compared for kind in self.sections[name])

    def setup(self, stage: str) -> None:
        """Prepare DDP for losses that leave some layers without gradients."""
        super().setup(stage)
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy) and None not in self.layers:
            # No loss reaches the layers after those that it looks at, and DDP would wait for their gradients.
            find_unused_parameters(strategy)

    def configure_model(self) -> None:
        """Load the policy and make the reference of it."""
        if self.model is not None:
            return
        super().configure_model()
        for layer in self.layers:
            # Refused now, not after the first measurement.
            if layer is not None:
                decoder_layer(self.language_model, layer)
        if self.trainable is not None:
            check_reached(self.language_model, self.trainable, self.layers)
        if self._needs_reference:
            # Before a checkpoint is loaded: the reference is the policy as it started.
            self.reference.attach(self.language_model, self._reference_context())

    def before_training(self) -> None:
        """Initialize adapters from the rows, where they are to be."""
        adapter = self.policy.adapter
        if adapter is None or adapter.initialization is None or not self._is_trained:
            return
        sequences = self.data.training_sequences
        self.language_model.to(self.trainer.strategy.root_device)
        adapter.initialization.apply(self.language_model, sequences["forget"], sequences["retain"])

    def before_sharding(self, strategy: FSDP2Strategy) -> None:
        """Make the reference's own model while the policy is whole; InputError where adapters are initialized by FILA."""
        if self.policy.adapter is not None and self.policy.adapter.initialization is not None:
            raise InputError(
                "model.policy.adapter.initialization: FILA needs a whole model, which fsdp2 has on no rank: use "
                "trainer.strategy ddp"
            )
        if self._needs_reference:
            self.reference.shard(self.language_model, strategy.shard)

    def on_fit_start(self) -> None:
        """Give the trained weights to the step scheme."""
        super().on_fit_start()
        self.step.check(self.trained_weights)
        self.step.prepare(self.trained_weights)

    def on_train_start(self) -> None:
        """Switch off dropout, unless it is asked for; Lightning warns of modules in eval mode before this."""
        if self.dropout:
            return
        if noise := noise_settings(self.language_model):
            settings = ", ".join(f"{name} {value:g}" for name, value in noise.items())
            rank_zero_info(
                f"dropout is off while unlearning (the model has {settings}): policy and reference are compared under the "
                "same conditions; --model.dropout true switches it on"
            )
        without_noise(self.language_model)

    @property
    def _needs_reference(self) -> bool:
        return bool(self.compared) and self._is_trained

    def _reference_context(self) -> ReferenceContext:
        trainer: Any = self.trainer
        sequences = self.data.training_sequences
        return ReferenceContext(
            layers=self.reference_layers,
            sequences={kind: sequences[kind] for kind in self.reference_kinds},
            identity=self.data.identity,
            folder=RunFolder(trainer.default_root_dir).path,
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
        """Return the loss of a batch of pairs."""
        weights = {"forget": 1.0, "retain": self.retain_weight.value}
        objective = self.step.objective(self.objective, batch, weights)
        for name, part in objective.sections.items():
            self.log_objective(name, part, len(batch.sections[name]))
        self.log_dict({f"train/{name}": value for name, value in self.retain_weight.state.items()})
        self.log(
            "train/loss", objective.loss.detach(), prog_bar=True, batch_size=len(batch.sections["forget"])
        )
        if "retain" in objective.sections:
            self.retain_weight.observe(objective.sections["retain"].loss, self.step_weight(batch_idx))
        return self.weighted(objective.loss, batch_idx)

    def objective(self, batch: Batch, weights: Mapping[str, float]) -> JointObjective:
        """Return the sum of the losses on the sections that the batch has, each times its weight."""
        losses = {name: loss for name, loss in self.losses.items() if name in batch.sections}
        states = self._states(batch, losses)
        targets = batch.by_section(batch.targets)
        references, reference_head = self._reference(batch)
        sections = {
            name: Section(
                loss,
                states[loss.layer][name],
                targets[name],
                batch.sections[name].lengths,
                references[loss.layer][name] if loss.uses_reference else None,
                weights[name],
                self.entropies[name],
                self.forget_until if name == "forget" else None,
            )
            for name, loss in losses.items()
        }
        head = OutputHead.of(self.language_model)
        return joint_objective(sections, head, reference_head, self.token_budget)

    def _states(self, batch: Batch, losses: Mapping[str, Loss]) -> dict[Layer, dict[str, Tensor]]:
        """Return the policy's states by layer and section; those of constants have no gradient."""
        layers = {loss.layer for loss in losses.values()}
        constants = {kind for loss in losses.values() for kind in loss.constant_companions}
        if not constants:
            return _by_section(batch, answer_states(self.language_model, batch, layers))
        varying = batch.of_kinds(batch.rows.keys() - constants)
        constant = batch.of_kinds(constants)
        with torch.no_grad():
            fixed = answer_states(self.language_model, constant, layers)
        states = answer_states(self.language_model, varying, layers)
        by_kind = {layer: varying.by_kind(states[layer]) | constant.by_kind(fixed[layer]) for layer in layers}
        return {
            layer: {
                name: torch.cat([each[kind] for kind in section.rows])
                for name, section in batch.sections.items()
            }
            for layer, each in by_kind.items()
        }

    def _reference(self, batch: Batch) -> tuple[dict[Layer, dict[str, Tensor]], OutputHead | None]:
        """Return the reference's states by layer and section, of the sections that need them, and its head."""
        names = [name for name in self.compared if name in batch.sections]
        if not names:
            return {}, None
        compared = batch.only(names)
        states = self.reference.states(compared, self.reference_layers)
        return _by_section(compared, states), self.reference.head

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Have the step scheme compute the gradients of a batch."""
        self.step.backward(loss)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Have the step scheme finish the gradient after the last batch of a step; then update policy and retain weight."""
        assert optimizer_closure is not None
        strategy = self.trainer.strategy
        # A scheme that keeps gradients apart averages them by itself.
        ddp = strategy if self.step.separate and isinstance(strategy, DDPStrategy) else None

        def evaluate(batch: Batch, weights: Mapping[str, float]) -> JointObjective:
            with self.trainer.precision_plugin.forward_context():
                return self.objective(batch, weights)

        def closure() -> Any:
            loss = optimizer_closure()
            found = self.step.finish(evaluate, self.trainer.world_size)
            self.log_dict({f"train/{name}": value for name, value in found.items()})
            return loss

        with nullcontext() if ddp is None else ddp.block_backward_sync():
            super().optimizer_step(epoch, batch_idx, optimizer, closure)
        self.retain_weight.update(self.current_epoch, strategy.reduce)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the retain weight, where it changes."""
        super().on_save_checkpoint(checkpoint)
        checkpoint |= self.retain_weight.state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the retain weight."""
        super().on_load_checkpoint(checkpoint)
        self.retain_weight.load(checkpoint)


def _by_section(batch: Batch, states: dict[Layer, Tensor]) -> dict[Layer, dict[str, Tensor]]:
    return {layer: batch.by_section(each) for layer, each in states.items()}
