"""What a loss takes beside the logits that it is given."""

import tracemalloc
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dipo_pl.commands.plan.live_memory import LiveMemory
from dipo_pl.losses.base import Loss, Terms
from dipo_pl.private_names import storage_key

# As large as tells a tensor of logits from all that is small; found in milliseconds.
POSITIONS, WIDTH = 16, 8192


@dataclass(frozen=True)
class LossMemory:
    """Memory of a loss in units of the logits of one model that it is given; found by computing it.

    Attributes:
        extra: beside these, at most, while a term and its gradient are computed.
        gradient: of the gradient, where it is none of the logits themselves; else 0.
    """

    extra: float
    gradient: float

    @classmethod
    def of(cls, loss: Loss) -> Self:
        """
        Raises:
            InputError: the loss refuses what it is given.
        """
        # What the first time imports is held, too.
        _seen(loss)
        return cls(*_seen(loss))


def _seen(loss: Loss) -> tuple[float, float]:
    """Extra memory and the gradient's, in units of one model's logits."""
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
    size = 0 if storage_key(terms.gradient) in inputs else terms.gradient.untyped_storage().nbytes()
    return max(0.0, extra), size / unit


class StandIn(Loss):
    """Takes the memory of another loss, and computes nothing: what that computes may depend on values."""

    def __init__(self, loss: Loss) -> None:
        self.memory = LossMemory.of(loss)
        for name in ("uses_reference", "mean_over", "skip", "companions", "couples_sequences", "layer"):
            setattr(self, name, getattr(loss, name))

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        return self.terms_and_gradient(logits, targets, reference_logits).values

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        beside = self.memory.extra - self.memory.gradient
        gradient = torch.empty_like(logits) if self.memory.gradient else logits
        logits.new_empty(max(0, round(beside * logits.numel())))
        return Terms(logits.new_zeros(len(logits)), gradient, {})

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        return sums.view(len(sums), -1).sum(dim=1)
