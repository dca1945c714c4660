"""Stand-ins for losses and stored reference states, which allocate the same memory and compute nothing."""

import tracemalloc
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dipo_pl.batch import Batch
from dipo_pl.commands.plan.live_memory import LiveMemory
from dipo_pl.losses.base import Loss, Terms
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import Layer
from dipo_pl.private_names import storage_key
from dipo_pl.references.base import Reference, ReferenceContext

# Large enough that small tensors do not matter beside the logits; computed in milliseconds.
POSITIONS, WIDTH = 16, 8192


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
        """Return the memory of a loss.

        Raises:
            InputError: the loss refuses its input.
        """
        # The first call also counts what it imports.
        _measured(loss)
        return cls(*_measured(loss))


def _measured(loss: Loss) -> tuple[float, float]:
    unit = 4 * POSITIONS * WIDTH
    policy = torch.rand(POSITIONS, WIDTH, generator=torch.Generator().manual_seed(0))
    reference = policy + 0.1 if loss.uses_reference else None
    given = [policy] if reference is None else [policy, reference]
    inputs = {storage_key(each) for each in given}
    targets = torch.arange(POSITIONS)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with torch.no_grad(), LiveMemory(numpy=True) as memory:
            held = memory.hold([*given, targets])
            terms = loss.terms_and_gradient(policy, targets, reference)
        extra = (memory.peak - held - before) / unit
    finally:
        tracemalloc.stop()
    gradient = terms.gradient.untyped_storage()
    return max(0.0, extra), 0.0 if storage_key(gradient) in inputs else gradient.nbytes() / unit


class LossStandIn(Loss):
    """Loss that allocates the memory of another one, whose computation may depend on values.

    Args:
        loss: the loss it stands for.
    """

    def __init__(self, loss: Loss) -> None:
        self.memory = LossMemory.of(loss)
        for name in ("uses_reference", "mean_over", "skip", "companions", "couples_sequences", "layer"):
            setattr(self, name, getattr(loss, name))

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        """Return zeros."""
        return self.terms_and_gradient(logits, targets, reference_logits).values

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        """Return zeros, after allocating what the loss allocates."""
        temporary = self.memory.extra - self.memory.gradient
        gradient = torch.empty_like(logits) if self.memory.gradient else logits
        logits.new_empty(max(0, round(temporary * logits.numel())))
        return Terms(logits.new_zeros(len(logits)), gradient, {})

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Return the sum over a row and its companions."""
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
        count = len(batch.positions)
        return {
            layer: torch.empty(count, width, dtype=dtype) for layer, (width, dtype) in self._states.items()
        }
