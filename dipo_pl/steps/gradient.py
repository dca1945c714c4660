"""Gradient of one loss, kept apart from `.grad` while it is accumulated, and its arithmetic over ranks and shards."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from dipo_pl.distributed import all_reduce, is_shard, local_tensor


class Gradient:
    """Gradient of one loss by the trained weights.

    Attributes:
        weights: the trained weights.
        parts: the gradient by each of them, None where the loss does not reach it; of sharded weights, this rank's shards.
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.weights = weights
        self.parts: list[Tensor | None] = [None] * len(weights)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Have backward passes add to this gradient; `.grad` is None before and afterwards."""
        self.install()
        try:
            yield
        finally:
            self.parts = [each.grad for each in self.weights]
            for weight in self.weights:
                weight.grad = None

    def install(self) -> None:
        """Make this gradient `.grad` of the weights."""
        for weight, part in zip(self.weights, self.parts, strict=True):
            weight.grad = part

    @torch.no_grad()
    def average(self, ranks: int) -> Self:
        """Replace the gradient by its mean over ranks, and return it; FSDP2 has averaged shards already. A collective."""
        if ranks == 1 or any(is_shard(each) for each in self.weights):
            return self
        # A weight that one rank's rows reach, such as an expert's, may be out of reach of another's.
        reached = torch.tensor([each is not None for each in self.parts], device=self.weights[0].device)
        reached = all_reduce([reached.int()])[0] > 0
        for number in reached.nonzero().flatten().tolist():
            if self.parts[number] is None:
                self.parts[number] = torch.zeros_like(self.weights[number])
        for part in all_reduce([each for each in self.parts if each is not None]):
            part.div_(ranks)
        return self

    @torch.no_grad()
    def dot(self, other: "Gradient") -> Tensor:
        """Return the inner product with another gradient, a float32 scalar, over all shards. A collective of shards."""
        total = torch.zeros((), dtype=torch.float32, device=self.weights[0].device)
        for one, two in zip(self.parts, other.parts, strict=True):
            if one is not None and two is not None:
                total += (local_tensor(one).float() * local_tensor(two).float()).sum()
        return all_reduce([total])[0] if any(is_shard(each) for each in self.weights) else total

    @torch.no_grad()
    def add(self, other: "Gradient", factor: Tensor) -> Self:
        """Add another gradient times a factor, and return the sum."""
        for number, part in enumerate(other.parts):
            if part is None:
                continue
            own = self.parts[number]
            if own is None:
                own = self.parts[number] = torch.zeros_like(part)
            local_tensor(own).addcmul_(local_tensor(part), factor)
        return self

    @torch.no_grad()
    def move_weights(self, factor: Tensor) -> list[Tensor]:
        """Add the gradient times a factor to the weights; return copies of the weights as they were, for `restore`."""
        before = [local_tensor(each).clone() for each in self.weights]
        for weight, part in zip(self.weights, self.parts, strict=True):
            if part is not None:
                local_tensor(weight).addcmul_(local_tensor(part), factor)
        return before

    @torch.no_grad()
    def restore(self, before: Sequence[Tensor]) -> None:
        """Set the weights to what they were, bit by bit."""
        for weight, values in zip(self.weights, before, strict=True):
            local_tensor(weight).copy_(values)
