"""Memory of a training step, followed operation by operation on a model without weights."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dipo_pl.batch import Batch, Encoded, collate
from dipo_pl.commands.plan.live_memory import LiveMemory, storage_bytes
from dipo_pl.commands.plan.machine import Machine
from dipo_pl.commands.plan.stand_ins import (
    CopyableFakeTensorMode,
    StoredStatesStandIn,
    loss_stand_in,
    make_fake,
    skeleton,
)
from dipo_pl.errors import InputError, short_message
from dipo_pl.losses.engine import JointObjective
from dipo_pl.losses.retain_weight import FixedWeight
from dipo_pl.models.eval_mode import without_noise
from dipo_pl.models.head import OutputHead, default_token_budget
from dipo_pl.models.hidden_states import Layer, answer_states, decoder_layers, decoder_of, decoder_states
from dipo_pl.models.key_value_cache import RESERVE
from dipo_pl.models.trainable import train_only
from dipo_pl.modules.base import LanguageModule
from dipo_pl.modules.fused_update import fused_update
from dipo_pl.modules.unlearning import Unlearning
from dipo_pl.private_names import storage_key
from dipo_pl.references.base import ReferenceContext
from dipo_pl.references.stored_states import StoredStates


@dataclass(frozen=True)
class Shapes:
    """Shapes of the largest batches of a run.

    Attributes:
        training: sequences of a batch of one device, by kind.
        evaluation: [rows, tokens] of an evaluation batch.
        generation: [rows, tokens] generated at a time, prompts included.
        accumulates: whether gradients are accumulated over several batches.
    """

    training: Mapping[str, Sequence[Encoded]]
    evaluation: tuple[int, int]
    generation: tuple[int, int]
    accumulates: bool


@dataclass(frozen=True)
class Memory:
    """Bytes on one device and in files, and numbers of parameters, each counted once.

    Attributes:
        trained, frozen, adapter: parameters that are trained, that are not, and those of adapters.
        weights, moments, gradients: this device's part.
        reference: this device's tensors of the reference.
        activations: tensors that the forward pass keeps for the backward pass.
        casts: copies of weights that autocast makes during the forward pass.
        head: peak of the logits of a group of positions and their gradients.
        forward, backward, optimizer, evaluation, generation: peaks, with everything that is held at that time.
        cache: keys and values during generation.
        overhead: gathered layers of FSDP2, or buckets of DDP.
        checkpoint, export: tensors of a checkpoint and of the exported model.
        state_bytes: hidden states of one position in a store of the reference, by layer.
    """

    trained: int
    frozen: int
    adapter: int
    weights: float
    reference: float
    moments: float
    gradients: float
    activations: float
    casts: float
    head: float
    forward: float
    backward: float
    optimizer: float
    evaluation: float
    generation: float
    cache: float
    overhead: float
    checkpoint: float
    export: float
    state_bytes: Mapping[Layer, int]

    @property
    def peak(self) -> float:
        """Most bytes that the device holds at any time."""
        peaks = (self.forward, self.backward, self.optimizer, self.evaluation, self.generation)
        return max(peaks) + self.overhead


def memory_of(
    module: LanguageModule,
    shapes: Shapes,
    machine: Machine,
    vocabulary: int | None = None,
    adapter_export: bool = False,
) -> Memory:
    """Return the memory that training takes; no weights are loaded.

    Args:
        module: what is trained; it cannot be used afterwards.
        shapes: the largest batches.
        machine: the devices.
        vocabulary: tokens of the tokenizer, for a model that is made from a configuration.
        adapter_export: whether adapters are exported instead of the model.

    Raises:
        InputError: the model cannot be made from its configuration, or its step cannot be followed without contents.
    """
    if isinstance(module, Unlearning):
        # A weight that follows the loss changes no shape.
        module.retain_weight = FixedWeight(1.0)
        module.losses = {name: loss_stand_in(loss) for name, loss in module.losses.items()}
    with warnings.catch_warnings(), _quiet("torch._subclasses.fake_tensor"):
        warnings.simplefilter("ignore")
        model = skeleton(module.policy, machine, vocabulary)
        if module.trainable is not None:
            train_only(model, module.trainable)
        with CopyableFakeTensorMode():
            make_fake(model)
            module.model = model
            try:
                return _Step(module, model, shapes, machine).memory(adapter_export)
            except InputError:
                raise
            except Exception as error:
                raise InputError(
                    f"cannot follow a step of {type(model).__name__} on tensors without contents "
                    f"({short_message(error)}): measure its memory in a run"
                ) from error


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a logger from writing tracebacks of errors that become one line."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Step:
    def __init__(
        self, module: LanguageModule, model: PreTrainedModel, shapes: Shapes, machine: Machine
    ) -> None:
        # The type is Any because Lightning declares that a training step may return more than a tensor.
        self.module: Any = module
        self.model, self.shapes, self.machine = model, shapes, machine
        self.live = LiveMemory(machine.devices if machine.sharded else 1)
        if module.token_budget is None:
            module.token_budget = default_token_budget(torch.device("cpu" if machine.on_cpu else "cuda"))
        self.parameters = [each for each in model.parameters() if each.requires_grad]
        # Width and dtype of a position's hidden states in a store.
        self.states: dict[Layer, tuple[int, torch.dtype]] = {}

    def memory(self, adapter_export: bool) -> Memory:
        """Return the memory of two steps, an evaluation and a generation."""
        with self.live as live:
            weights = live.hold([*self.model.parameters(), *self.model.buffers()], sharded=True)
            live.weights |= {storage_key(each) for each in self.model.parameters()}
            reference = self._attach_reference()
            if isinstance(self.module, Unlearning) and not self.module.dropout:
                without_noise(self.model)
            optimizer: Any = fused_update(self.module.optimizer(self.parameters))
            for group in optimizer.param_groups:
                # Fake tensors are on no GPU, where foreach would be the default.
                if not self.machine.on_cpu and "foreach" in group and not group.get("fused"):
                    group["foreach"] = group["foreach"] is not False
            if isinstance(self.module, Unlearning):
                self.module.step.prepare(self.module.trained_weights)
            for each in self.parameters:
                each.register_post_accumulate_grad_hook(self._hold_gradient)
            moments, gradients = self._first_step(optimizer)
            step = self._second_step(optimizer)
            evaluation = self._evaluation()
            cache = self._cache()
        tensors = self.model.state_dict()
        parameters = self.model.named_parameters(remove_duplicate=False)
        frozen = {name for name, each in parameters if not each.requires_grad}
        adapters = {name for name in tensors if ".lora_" in name}
        exported = adapters if adapter_export else tensors.keys() - adapters
        kept = storage_bytes(tensors[name] for name in tensors.keys() - frozen)
        return Memory(
            trained=sum(each.numel() for each in self.parameters),
            frozen=sum(each.numel() for each in self.model.parameters() if not each.requires_grad),
            adapter=sum(tensors[name].numel() for name in adapters),
            weights=weights,
            reference=reference,
            moments=moments,
            gradients=gradients,
            **step,
            evaluation=evaluation,
            generation=live.live + cache,
            cache=cache,
            overhead=self._overhead(gradients),
            checkpoint=kept + storage_bytes(_state(optimizer)),
            export=storage_bytes(tensors[name] for name in exported),
            state_bytes={layer: width * dtype.itemsize for layer, (width, dtype) in self.states.items()},
        )

    def _hold_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.live.hold([parameter.grad], sharded=True)

    def _attach_reference(self) -> float:
        module = self.module
        if not isinstance(module, Unlearning) or not module.reference_layers:
            return 0.0
        self._note_states(module)
        if isinstance(module.reference, StoredStates):
            module.reference = StoredStatesStandIn(self.states)
        before = self.live.live
        context = ReferenceContext(
            layers=module.reference_layers,
            sequences={},
            identity={},
            folder=Path(),
            device=torch.device("cpu"),
            precision=self._forward_context,
            rank=0,
            world_size=1,
            barrier=lambda: None,
        )
        module.reference.attach(self.model, context)
        if (copy := self._reference_model) is not None:
            self.live.hold([*copy.parameters(), *copy.buffers()], sharded=True)
        return self.live.live - before

    @property
    def _reference_model(self) -> PreTrainedModel | None:
        model = getattr(getattr(self.module, "reference", None), "model", None)
        return model if isinstance(model, PreTrainedModel) else None

    def _note_states(self, module: Unlearning) -> None:
        batch = collate({"": [Encoded((0, 0), 1)]}, [0])
        self.model.eval()
        with torch.no_grad(), self._forward_context():
            for layer, states in answer_states(self.model, batch, module.reference_layers).items():
                # Autocast rounds the input of the head anyway, and that is how it is stored.
                rounded = self.machine.autocast if layer is None else None
                dtype = getattr(module.reference, "dtype", None) or rounded
                self.states[layer] = states.shape[1], getattr(torch, dtype) if dtype else states.dtype
        self.model.train()

    def _forward_context(self) -> AbstractContextManager[Any]:
        if self.machine.autocast is None:
            return nullcontext()
        # Lightning disables the cache: weights are cast each time they are used.
        return torch.autocast("cpu", getattr(torch, self.machine.autocast), cache_enabled=False)

    def _batch(self) -> Batch:
        rows = [row for each in self.shapes.training.values() for row in range(len(each))]
        return collate(self.shapes.training, rows, self.module.sections)

    def _first_step(self, optimizer: Any) -> tuple[float, float]:
        """Take the step that creates gradients and moments; return the bytes of moments and gradients."""
        with self._forward_context():
            loss = self.module.training_step(self._batch(), 0)
        self._backward(loss)
        del loss
        before = self.live.live
        optimizer.step()
        self.live.hold(_state(optimizer), sharded=True)
        gradients = storage_bytes(each.grad for each in self.parameters if each.grad is not None)
        return self.live.live - before, gradients / self.live.shards

    def _backward(self, loss: Tensor) -> None:
        """Make the gradient of a step of one batch, with all passes that the step scheme takes."""
        self.module.backward(loss)
        if isinstance(self.module, Unlearning):
            self.module.step.finish(self._evaluate, 1)

    def _evaluate(self, batch: Batch, weights: Mapping[str, float]) -> JointObjective:
        with self._forward_context():
            objective: JointObjective = self.module.objective(batch, weights)
        return objective

    def _second_step(self, optimizer: Any) -> dict[str, float]:
        """Take a step in Lightning's order; return its peaks and the memory of its parts."""
        live, batch = self.live, self._batch()
        if self.shapes.accumulates and isinstance(self.module, Unlearning) and self.module.step.separate:
            # Gradients that earlier batches of the step have left.
            optimizer.zero_grad()
            with self._forward_context():
                loss = self.module.training_step(batch, 0)
            self.module.backward(loss)
            del loss
        base = live.restart()
        after_decoder: list[tuple[float, float]] = []
        peaks: list[float] = []

        def note(*_: Any) -> None:
            if torch.is_grad_enabled():
                after_decoder.append((live.live - base, live.casts))
            peaks.append(live.peak)
            live.restart()

        hook = decoder_of(self.model).register_forward_hook(note)
        with self._forward_context():
            loss = self.module.training_step(batch, 0)
        hook.remove()
        activations, casts = after_decoder[-1]
        head = live.peak - base - activations
        forward = max(live.peak, *peaks)
        # Lightning keeps the gradients of the previous step until here.
        if not self.shapes.accumulates:
            optimizer.zero_grad()
        live.restart()
        self._backward(loss)
        del loss
        backward = live.peak
        before = live.restart()
        optimizer.step()
        return {
            "activations": activations - casts,
            "casts": casts,
            "head": head,
            "forward": forward,
            "backward": backward,
            "optimizer": before + (live.peak - before) / live.shards,
        }

    @torch.no_grad()
    def _evaluation(self) -> float:
        """Return the peak of an evaluation; gradients are still held."""
        rows, width = self.shapes.evaluation
        self.live.restart()
        self.model.eval()
        with self._forward_context():
            ids = torch.zeros(rows, width, dtype=torch.long)
            states = decoder_states(self.model, ids, torch.ones(rows, width, dtype=torch.bool)).flatten(0, 1)
            head = OutputHead.of(self.model).cast(states.dtype)
            budget = min(self.module.token_budget or 1, len(states))
            states.new_empty(2, budget, len(head.weight), dtype=torch.float32)
        return self.live.peak

    @torch.no_grad()
    def _cache(self) -> float:
        """Return the bytes of keys and values during generation, with the room that is reserved for a row."""
        rows, width = self.shapes.generation
        # Keys and values grow with the tokens, states of recurrent layers do not.
        two, four = (storage_bytes(self._kept_after(tokens)) for tokens in (2, 4))
        growth = (four - two) / 2
        return rows * (two + growth * (width + RESERVE - 2))

    def _kept_after(self, tokens: int) -> list[Tensor]:
        """Return the tensors that the decoder keeps of a row for the next token."""
        ids = torch.zeros(1, tokens, dtype=torch.long)
        output = decoder_of(self.model)(input_ids=ids, use_cache=True)
        return _tensors([value for name, value in output.items() if name != "last_hidden_state"])

    def _overhead(self, gradients: float) -> float:
        if self.machine.strategy == "ddp":
            # Gradients are copied to buckets.
            return gradients
        if not self.machine.sharded:
            return 0.0
        layers = [storage_bytes(layer.parameters()) for layer in decoder_layers(self.model)]
        outside = storage_bytes(self.model.parameters()) - sum(layers)
        # FSDP2 gathers a layer while it prefetches the next one; embedding and head stay gathered.
        return 2 * max(layers) + (1 if self._reference_model is None else 2) * outside


def _tensors(content: object) -> list[Tensor]:
    """Return the tensors in containers and attributes of objects, such as the caches of any architecture."""
    if isinstance(content, Tensor):
        return [content]
    if isinstance(content, Mapping):
        content = list(content.values())
    if isinstance(content, list | tuple):
        return [each for part in content for each in _tensors(part)]
    inside = [] if isinstance(content, type) else getattr(content, "__dict__", {}).values()
    return [each for part in inside if not isinstance(part, nn.Module) for each in _tensors(part)]


def _state(optimizer: Any) -> list[Tensor]:
    states = optimizer.state.values()
    return [each for state in states for each in state.values() if isinstance(each, Tensor)]
