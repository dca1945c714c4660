"""Stand-ins that take the same memory and compute nothing: models without weights, losses, stored reference states."""

import tracemalloc
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from dipo_pl.batch import Batch
from dipo_pl.commands.plan.live_memory import LiveMemory
from dipo_pl.commands.plan.machine import Machine
from dipo_pl.errors import InputError, short_message
from dipo_pl.losses.base import Loss, Terms
from dipo_pl.losses.gap import GapLoss, GapWeights
from dipo_pl.models.from_config import FromConfig
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import Layer
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.models.source import ModelSource
from dipo_pl.private_names import FakeTensorMode, storage_key
from dipo_pl.references.base import Reference, ReferenceContext

# Logits of this size take milliseconds, and small tensors do not matter beside them.
POSITIONS, WIDTH = 16, 8192


class CopyableFakeTensorMode(FakeTensorMode):
    """FakeTensorMode in which a model can be copied with deepcopy."""

    def __deepcopy__(self, memo: Any) -> Self:
        return self


def skeleton(policy: ModelSource, machine: Machine, vocabulary: int | None) -> PreTrainedModel:
    """Return the policy's model in train mode on the meta device, made from its configuration alone.

    Args:
        policy: source of the model.
        machine: its dtype is the model's.
        vocabulary: tokens of the tokenizer, for a model that is made from a configuration.

    Raises:
        InputError: the policy is quantized, or its model cannot be made.
    """
    if policy.quantization is not None:
        raise InputError(
            f"model.policy.quantization is {policy.quantization}, and a quantized policy cannot be trained: leave it out"
        )
    config: Any = policy.configuration()
    options: dict[str, Any] = {"attn_implementation": policy.attention} if policy.attention else {}
    if isinstance(policy, FromConfig):
        if vocabulary is not None:
            text = config.get_text_config()
            text.vocab_size = vocabulary
            # A padding token beyond the vocabulary is refused, and the tokenizer's is not known.
            text.bos_token_id = text.eos_token_id = text.pad_token_id = None
    elif isinstance(policy, Pretrained):
        dtype = config.dtype if policy.weights_dtype == "auto" else getattr(torch, policy.weights_dtype)
        options |= {"dtype": dtype or torch.float32, "trust_remote_code": policy.trust_remote_code}
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **options)
    except Exception as error:
        raise InputError(
            f"cannot make the model of {policy.source} from its configuration: {short_message(error)}"
        ) from error
    if policy.adapter is not None:
        policy.adapter.apply(model)
    if machine.dtype is not None:
        model.to(getattr(torch, machine.dtype))
    return policy.prepare(model)


def make_fake(model: PreTrainedModel) -> None:
    """Replace the tensors of a model on the meta device, in place, by fake ones of the active FakeTensorMode."""
    fakes: dict[int, Tensor] = {}
    for module in model.modules():
        own: dict[str, Tensor] = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        own |= dict(module.named_buffers(recurse=False, remove_duplicate=False))
        for name, each in own.items():
            if id(each) not in fakes:
                empty = torch.empty(each.shape, dtype=each.dtype)
                is_parameter = isinstance(each, nn.Parameter)
                fakes[id(each)] = nn.Parameter(empty, each.requires_grad) if is_parameter else empty
            setattr(module, name, fakes[id(each)])


@dataclass(frozen=True)
class LossMemory:
    """Memory of a loss in units of the logits of one model, measured by computing the loss.

    Attributes:
        extra: peak beside the logits that the loss is given.
        gradient: memory of the gradient, 0 if it is written into the logits.
    """

    extra: float
    gradient: float

    @classmethod
    def of(cls, loss: Loss) -> Self:
        """Return the memory of a loss."""
        # The first call also counts what it imports.
        _measured(loss)
        return cls(*_measured(loss))

    def allocate(self, logits: Tensor) -> Tensor:
        """Allocate what the loss allocates, and return a gradient without contents."""
        temporary = self.extra - self.gradient
        gradient = torch.empty_like(logits) if self.gradient else logits
        logits.new_empty(max(0, round(temporary * logits.numel())))
        return gradient


def _measured(loss: Loss) -> tuple[float, float]:
    unit = 4 * POSITIONS * WIDTH
    policy = torch.rand(POSITIONS, WIDTH, generator=torch.Generator().manual_seed(0))
    reference = policy + 0.1 if loss.uses_reference and not isinstance(loss, GapLoss) else None
    given = [policy] if reference is None else [policy, reference]
    inputs = {storage_key(each) for each in given}
    targets = torch.arange(POSITIONS)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with torch.no_grad(), LiveMemory(numpy=True) as memory:
            held = memory.hold([*given, targets])
            if isinstance(loss, GapLoss):
                gradient = loss.gap_weights(policy, targets).values
            else:
                gradient = loss.terms_and_gradient(policy, targets, reference).gradient
        extra = (memory.peak - held - before) / unit
    finally:
        tracemalloc.stop()
    storage = gradient.untyped_storage()
    return max(0.0, extra), 0.0 if storage_key(storage) in inputs else storage.nbytes() / unit


# Attributes that tell the engine how to evaluate a loss.
_ATTRIBUTES = (
    "uses_reference", "mean_over", "skip", "companions", "constant_companions", "couples_sequences", "layer",
)  # fmt: skip


def loss_stand_in(loss: Loss) -> Loss:
    """Return a loss that allocates the memory of another one, whose computation may depend on values."""
    stand_in = GapLossStandIn(loss) if isinstance(loss, GapLoss) else LossStandIn(loss)
    for name in _ATTRIBUTES:
        setattr(stand_in, name, getattr(loss, name))
    return stand_in


class LossStandIn(Loss):
    """Loss that allocates the memory of another one and computes nothing."""

    def __init__(self, loss: Loss) -> None:
        self.memory = LossMemory.of(loss)

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        """Return zeros."""
        return self.terms_and_gradient(logits, targets, reference_logits).values

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        """Return zeros, after allocating what the loss allocates."""
        return Terms(logits.new_zeros(len(logits)), self.memory.allocate(logits), {})

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Return the sum over a row and its companions."""
        return _row_sums(sums)


class GapLossStandIn(GapLoss):
    """Loss of the gap that allocates the memory of another one and computes nothing."""

    def __init__(self, loss: GapLoss) -> None:
        self.memory = LossMemory.of(loss)
        self.weights_from = loss.weights_from

    def gap_weights(self, logits: Tensor, targets: Tensor) -> GapWeights:
        """Return weights without contents, after allocating what the loss allocates."""
        return GapWeights(self.memory.allocate(logits), {})

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Return the sum over a row and its companions."""
        return _row_sums(sums)


def _row_sums(sums: Tensor) -> Tensor:
    return sums.view(len(sums), -1).sum(dim=1)


class StoredStatesStandIn(Reference):
    """Reference that holds on the device what StoredStates holds, without files.

    Args:
        states: width and dtype of the hidden states of each layer.
    """

    def __init__(self, states: Mapping[Layer, tuple[int, torch.dtype]]) -> None:
        self._states = states

    def attach(self, policy: PreTrainedModel, context: ReferenceContext) -> None:
        """Copy the output head if training changes it."""
        head = OutputHead.of(policy)
        if head.weight.requires_grad and None in context.layers:
            head = head.map(lambda tensor: tensor.detach().clone())
        self._head = head

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Do nothing."""

    @property
    def head(self) -> OutputHead:
        """Output head of the reference."""
        return self._head

    def states(self, batch: Batch, layers: Collection[Layer] = (None,)) -> dict[Layer, Tensor]:
        """Return empty hidden states of each layer."""
        shapes = self._states.items()
        return {
            layer: torch.empty(len(batch.positions), width, dtype=dtype) for layer, (width, dtype) in shapes
        }
