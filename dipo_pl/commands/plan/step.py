"""A training step of a model without weights, operation by operation, and what it holds at most."""

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from dipo_pl.batch import Batch, Encoded, collate
from dipo_pl.commands.plan.live_memory import LiveMemory
from dipo_pl.commands.plan.loss_memory import StandIn
from dipo_pl.commands.plan.machine import Machine
from dipo_pl.errors import InputError
from dipo_pl.losses.retain_weight import FixedWeight
from dipo_pl.models.from_config import FromConfig
from dipo_pl.models.generation import RESERVE
from dipo_pl.models.head import OutputHead, default_token_budget
from dipo_pl.models.hidden_states import Layer, answer_states, decoder_layers, decoder_states
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.models.source import ModelSource
from dipo_pl.modules.base import LanguageModule
from dipo_pl.modules.unlearning import Unlearning
from dipo_pl.private_names import FakeTensorMode, storage_key
from dipo_pl.references.base import Reference, ReferenceContext
from dipo_pl.references.stored_states import StoredStates

# generate()'s own default.
CACHE_TOKENS = 16_384


@dataclass(frozen=True)
class Shapes:
    """The largest of what a run computes at once.

    Attributes:
        training: sequences of a device's batch, by kind.
        evaluation: [rows, tokens] of a batch that is measured.
        generation: [rows, tokens] generated at once, prompts included.
        accumulates: whether gradients are summed up over several batches.
    """

    training: Mapping[str, Sequence[Encoded]]
    evaluation: tuple[int, int]
    generation: tuple[int, int]
    accumulates: bool


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, and of files; parameters are counted, each once.

    Attributes:
        trained, frozen, adapter: parameters of the policy; adapters are trained.
        weights, reference, moments, gradients: this device's share of them.
        activations: what the forward pass keeps for the backward one; copies that autocast makes of weights included.
        casts: these copies.
        head: what is computed of groups of logits and their gradients, at most.
        forward, backward, optimizer, evaluation, generation: peaks of these, with all that is there meanwhile.
        cache: keys and values while answers are generated.
        overhead: of the strategy: gathered layers, or DDP's buckets.
        checkpoint, export: tensors of the files.
        state_bytes: of a position's states in a store of the reference's, by layer.
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
        peaks = (self.forward, self.backward, self.optimizer, self.evaluation, self.generation)
        return max(peaks) + self.overhead


def memory_of(
    module: LanguageModule,
    shapes: Shapes,
    machine: Machine,
    tokens: int | None = None,
    adapter_export: bool = False,
) -> Memory:
    """What training `module` takes; nothing of it is loaded, and `module` is of no further use.

    Args:
        tokens: of the tokenizer, which a model that is made from a configuration embeds.

    Raises:
        InputError: the model cannot be made from its configuration.
    """
    if isinstance(module, Unlearning):
        # What follows its loss changes no shape.
        module.retain_weight = FixedWeight(1.0)
        module.losses = {name: StandIn(loss) for name, loss in module.losses.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _skeleton(module.policy, machine, tokens).train()
        with _OneMode():
            module.model = _on_a_device(model)
            try:
                return _Step(module, model, shapes, machine).memory(adapter_export)
            except (RuntimeError, AttributeError, NotImplementedError) as error:
                raise InputError(
                    f"cannot follow a step of {type(model).__name__} on tensors without contents "
                    f"({' '.join(str(error).split())[:200]}): its memory can only be measured, by a run"
                ) from error


class _OneMode(FakeTensorMode):
    """Copies of a model stay in it."""

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class _Step:
    def __init__(
        self, module: LanguageModule, model: PreTrainedModel, shapes: Shapes, machine: Machine
    ) -> None:
        self.live: LiveMemory
        # Lightning's is anything that a step may return.
        self.module: Any = module
        self.model, self.shapes, self.machine = model, shapes, machine
        if module.token_budget is None:
            device = torch.device("cpu" if machine.on_cpu else "cuda")
            module.token_budget = default_token_budget(device)
        self.parameters = [each for each in self.model.parameters() if each.requires_grad]
        # Width and dtype of a position's.
        self.states: dict[Layer, tuple[int, torch.dtype]] = {}

    def memory(self, adapter_export: bool) -> Memory:
        trained = self.parameters
        with LiveMemory(self.machine.devices) as memory:
            self.live = memory
            weights = self._hold([*self.model.parameters(), *self.model.buffers()], "weights")
            memory.weights |= {storage_key(each) for each in self.model.parameters()}
            reference = self._attach()
            optimizer: Any = self.module.optimizer(trained)
            for group in optimizer.param_groups:
                # The default of a GPU, which these tensors are not on.
                if not self.machine.on_cpu and "foreach" in group and not group.get("fused"):
                    group["foreach"] = group["foreach"] is not False
            for each in trained:
                each.register_post_accumulate_grad_hook(self._own_gradient)
            moments, gradients = self._first_step(optimizer)
            peaks, activations, casts, head = self._second_step(optimizer)
            evaluation = self._evaluated()
            cache = self._cache()
            generation = memory.live + cache
        state = {id(each): each for group in optimizer.state.values() for each in _tensors(group)}
        everything = self.model.state_dict()
        names = {
            name
            for name, each in self.model.named_parameters(remove_duplicate=False)
            if not each.requires_grad
        }
        adapters = {name: each for name, each in everything.items() if ".lora_" in name}
        exported = adapters if adapter_export else {k: v for k, v in everything.items() if k not in adapters}
        kept = [each for name, each in everything.items() if name not in names]
        return Memory(
            trained=sum(each.numel() for each in trained),
            frozen=sum(each.numel() for each in self.model.parameters() if not each.requires_grad),
            adapter=sum(each.numel() for each in adapters.values()),
            weights=weights,
            reference=reference,
            moments=moments,
            gradients=gradients,
            activations=activations,
            casts=casts,
            head=head,
            **peaks,
            evaluation=evaluation,
            generation=generation,
            cache=cache,
            overhead=self._overhead(gradients),
            checkpoint=_bytes(kept) + _bytes(state.values()),
            export=_bytes(exported.values()),
            state_bytes={layer: width * dtype.itemsize for layer, (width, dtype) in self.states.items()},
        )

    def _hold(self, tensors: Iterable[Tensor], part: Any) -> float:
        """Bytes of this device's share."""
        sharded = part in self.machine.sharded
        held: float = self.live.hold(tensors, sharded)
        return held / (self.machine.devices if sharded else 1)

    def _own_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._hold([parameter.grad], "gradients")

    def _attach(self) -> float:
        module = self.module
        if not isinstance(module, Unlearning):
            return 0.0
        layers = module.reference_layers
        if layers:
            self._measure_states(layers)
            if isinstance(module.reference, StoredStates):
                module.reference = _Stored(self.states)
            # What it is made of, and not what was there before.
            before = self.live.live
            module.reference.attach(self.model, _reference_context(module, self._forward_context))
            copied = getattr(module.reference, "model", None)
            if isinstance(copied, PreTrainedModel):
                self._hold([*copied.parameters(), *copied.buffers()], "weights")
            reference = self.live.live - before
        else:
            reference = 0.0
        return reference

    def _measure_states(self, layers: Collection[Layer]) -> None:
        short = collate({"": [Encoded((0, 0), 1)]}, [0])
        self.model.eval()
        with torch.no_grad(), self._forward_context():
            for layer, states in answer_states(self.model, short, layers).items():
                asked = getattr(self.module.reference, "dtype", None)
                lossless = self.machine.autocast if layer is None else None
                name = asked or lossless
                self.states[layer] = states.shape[1], getattr(torch, name) if name else states.dtype
        self.model.train()

    def _forward_context(self) -> AbstractContextManager[Any]:
        if self.machine.autocast is None:
            return nullcontext()
        # As Lightning does: weights are cast each time they are used.
        return torch.autocast("cpu", getattr(torch, self.machine.autocast), cache_enabled=False)

    def _batch(self) -> Batch:
        rows = [row for each in self.shapes.training.values() for row in range(len(each))]
        return collate(self.shapes.training, rows, self.module.sections)

    def _first_step(self, optimizer: Any) -> tuple[float, float]:
        """Makes gradients and moments; bytes of each."""
        with self._forward_context():
            loss = self.module.training_step(self._batch(), 0)
        loss.backward()
        del loss
        before = self.live.live
        optimizer.step()
        self._hold((each for group in optimizer.state.values() for each in _tensors(group)), "moments")
        moments = self.live.live - before
        gradients = _bytes(each.grad for each in self.parameters if each.grad is not None)
        return moments, gradients / (self.machine.devices if "gradients" in self.machine.sharded else 1)

    def _second_step(self, optimizer: Any) -> tuple[dict[str, float], float, float, float]:
        """Peaks, activations, casts and what the engine takes; in the order in which Lightning does things."""
        memory, batch = self.live, self._batch()
        base = memory.restart()
        seen: list[tuple[float, float]] = []
        after: list[float] = []
        decoder = self.model.get_decoder()

        def look(*_: Any) -> None:
            if torch.is_grad_enabled():
                seen.append((memory.live - base, memory.casts))
            after[:] = [memory.peak]
            memory.restart()

        hook = decoder.register_forward_hook(look)
        with self._forward_context():
            loss = self.module.training_step(batch, 0)
        hook.remove()
        activations, casts = seen[0]
        head = memory.peak - base - activations
        forward = max(memory.peak, *after)
        # Lightning forgets the gradients of the step before only here.
        if not self.shapes.accumulates:
            optimizer.zero_grad()
        memory.restart()
        loss.backward()
        del loss
        backward = memory.peak
        before = memory.restart()
        optimizer.step()
        # Each device steps on its share.
        beside = (memory.peak - before) / (self.machine.devices if "moments" in self.machine.sharded else 1)
        peaks = {"forward": forward, "backward": backward, "optimizer": before + beside}
        return peaks, activations - casts, casts, head

    def _evaluated(self) -> float:
        """The peak of measuring answers; gradients are still there."""
        rows, width = self.shapes.evaluation
        self.live.restart()
        self.model.eval()
        with torch.no_grad(), self._forward_context():
            ids = torch.zeros(rows, width, dtype=torch.long)
            states = decoder_states(self.model, ids, torch.ones(rows, width, dtype=torch.bool)).flatten(0, 1)
            head = OutputHead.of(self.model).cast(states.dtype)
            budget = min(self.module.token_budget or 1, len(states))
            logits = states.new_empty(2, budget, len(head.weight), dtype=torch.float32)
            del logits, head
        return self.live.peak

    @torch.no_grad()
    def _cache(self) -> float:
        """Of keys and values, with the room that a row's have."""
        cache = DynamicCache(config=self.model.config)
        ids, length = torch.zeros(1, 2, dtype=torch.long), 2
        self.model.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True)
        layers: list[Any] = list(cache.layers)
        kept = [each for layer in layers for each in (layer.keys, layer.values) if isinstance(each, Tensor)]
        rows, width = self.shapes.generation
        return _bytes(kept) / length * rows * (width + RESERVE)

    def _overhead(self, gradients: float) -> float:
        machine = self.machine
        if machine.strategy == "ddp":
            # Buckets, which gradients are copied to.
            return gradients
        if "weights" not in machine.sharded:
            return 0.0
        layers = [_bytes(layer.parameters()) for layer in decoder_layers(self.model)]
        root = _bytes(self.model.parameters()) - sum(layers)
        # A layer, and the next one that is fetched meanwhile; all that is in no layer, the engine's whole head included.
        copies = (
            2
            if isinstance(getattr(getattr(self.module, "reference", None), "_model", None), nn.Module)
            else 1
        )
        return 2 * max(layers) + copies * root


def _skeleton(policy: ModelSource, machine: Machine, tokens: int | None) -> PreTrainedModel:
    """The policy's model on the meta device."""
    if policy.quantization is not None:
        raise InputError(
            "model.policy.quantization is for measuring alone: a quantised policy is not trained"
        )
    config: Any = policy.configuration()
    options: dict[str, Any] = {"attn_implementation": policy.attention} if policy.attention else {}
    if isinstance(policy, FromConfig):
        if tokens is not None:
            config.get_text_config().vocab_size = tokens
            # What the tokenizer has is not known, and a padding token beyond the vocabulary is refused.
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                setattr(config.get_text_config(), name, None)
    elif isinstance(policy, Pretrained):
        dtype = config.dtype if policy.dtype == "auto" else getattr(torch, policy.dtype)
        options |= {"dtype": dtype or torch.float32, "trust_remote_code": policy.trust_remote_code}
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **options)
    except Exception as error:
        raise InputError(
            f"cannot make {policy.source} from its configuration: {' '.join(str(error).split())}"
        ) from error
    if policy.adapter is not None:
        policy.adapter.apply(model)
    if machine.dtype is not None:
        model.to(getattr(torch, machine.dtype))
    if policy.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _on_a_device(model: PreTrainedModel) -> PreTrainedModel:
    """In place: tensors of no device become such as an active FakeTensorMode follows on one."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        own: dict[str, Tensor] = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        own |= dict(module.named_buffers(recurse=False, remove_duplicate=False))
        for name, each in own.items():
            if id(each) not in made:
                empty = torch.empty(each.shape, dtype=each.dtype)
                is_parameter = isinstance(each, nn.Parameter)
                made[id(each)] = nn.Parameter(empty, each.requires_grad) if is_parameter else empty
            setattr(module, name, made[id(each)])
    return model


class _Stored(Reference):
    """Stored states that are in no file: what StoredStates holds of them on the device."""

    def __init__(self, states: Mapping[Layer, tuple[int, torch.dtype]]) -> None:
        self._states = states

    def attach(self, policy: PreTrainedModel, context: ReferenceContext) -> None:
        head = OutputHead.of(policy)
        if head.weight.requires_grad and None in context.layers:
            head = head.map(lambda tensor: tensor.detach().clone())
        self._head = head

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        pass

    @property
    def head(self) -> OutputHead:
        return self._head

    def states(self, batch: Batch, layers: Collection[Layer] = (None,)) -> dict[Layer, Tensor]:
        count = len(batch.positions)
        return {
            layer: torch.empty(count, width, dtype=dtype) for layer, (width, dtype) in self._states.items()
        }


def _reference_context(module: Unlearning, precision: Callable[[], Any]) -> ReferenceContext:
    return ReferenceContext(
        layers=module.reference_layers,
        sequences={},
        identity={},
        folder=Path(),
        device=torch.device("cpu"),
        precision=precision,
        rank=0,
        world_size=1,
        barrier=lambda: None,
    )


def _tensors(state: Mapping[str, Any]) -> Iterator[Tensor]:
    return (each for each in state.values() if isinstance(each, Tensor))


def _bytes(tensors: Iterable[Tensor]) -> float:
    """Each storage once."""
    return sum({storage_key(each): each.untyped_storage().nbytes() for each in tensors}.values())
