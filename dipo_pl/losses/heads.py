"""Output heads inside the engine: logits in memory that is used again, and sums of the heads' gradients."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from dipo_pl.models.head import OutputHead


@dataclass
class Heads:
    """Output heads of policy and reference.

    Attributes:
        policy: the policy's.
        reference: the reference's; None where no loss uses it.
    """

    policy: OutputHead
    reference: OutputHead | None
    _memory: dict[str, Tensor] = field(default_factory=dict)

    def converted(self, convert: Callable[[OutputHead], OutputHead]) -> "Heads":
        """Return both heads converted, once where the reference's is the policy's own."""
        policy, reference = convert(self.policy), self.reference
        if reference is not None:
            shared = reference.weight is self.policy.weight and reference.bias is self.policy.bias
            reference = policy if shared else convert(reference)
        return Heads(policy, reference)

    def logits(self, model: Literal["policy", "reference"], states: Tensor) -> Tensor:
        """Return the logits of [n, d] hidden states, [n, V] float32; the next call for the same model overwrites them."""
        head = self.policy if model == "policy" else self.reference
        assert head is not None
        memory = self._memory.get(model)
        if memory is None or len(memory) < len(states):
            memory = states.new_empty(len(states), len(head.weight), dtype=torch.float32)
            self._memory[model] = memory
        return head.logits(states.to(head.weight.dtype), out=memory[: len(states)])


class HeadGradients:
    """Gradients on the policy's head, summed over groups of positions.

    Sums are float32 whatever the dtypes: many small numbers are added here, and float16 would lose them before a
    loss scaler multiplies them.

    Args:
        weight: [V, d] of the head; None where its gradient is not wanted.
        bias: [V] of the head; None where its gradient is not wanted.
    """

    def __init__(self, weight: Tensor | None, bias: Tensor | None) -> None:
        self.weight = zeros_float32(weight)
        self.bias = zeros_float32(bias)

    def add(
        self, head: OutputHead, states: Tensor, by_linear: Tensor, by_term: Tensor, by_states: Tensor | None
    ) -> None:
        """Add the gradients of some positions, and write those on their hidden states.

        Args:
            head: the policy's, in the dtype of the products.
            states: [n, d] hidden states.
            by_linear: [n, V] derivative of each position's term by h W^T + b.
            by_term: [n] derivative of the loss by each position's term. It multiplies [n, d] tensors here, not
                the much larger [n, V].
            by_states: [n, d] float32, where the derivative by the states is written; None where it is not wanted.
        """
        dtype = head.weight.dtype
        if dtype == torch.float16:
            self._add_float16(head, states, by_linear, by_term, by_states)
            return
        by_linear = by_linear.to(dtype)
        if by_states is not None:
            torch.mul(by_linear @ head.weight, by_term[:, None], out=by_states)
        if self.weight is not None:
            weighted = (states * by_term[:, None]).to(dtype)
            if dtype == torch.float32:
                self.weight.addmm_(by_linear.T, weighted)
            else:
                self.weight.add_(by_linear.T @ weighted)
        if self.bias is not None:
            self.bias.add_(by_term.to(dtype) @ by_linear)

    def _add_float16(
        self, head: OutputHead, states: Tensor, by_linear: Tensor, by_term: Tensor, by_states: Tensor | None
    ) -> None:
        """Add with factors normalized to a largest entry of 1: a loss scaler comes too late for what is lost here."""
        by_linear, scale = _normalized(by_linear)
        by_term = by_term * scale
        if by_states is not None:
            torch.mul(by_linear.half() @ head.weight, by_term[:, None], out=by_states)
        if self.weight is not None:
            weighted, scale = _normalized(states.float() * by_term[:, None])
            self.weight.add_((by_linear.half().T @ weighted.half()).float().mul_(scale))
        if self.bias is not None:
            self.bias.add_(by_term @ by_linear)


def zeros_float32(like: Tensor | None) -> Tensor | None:
    """Return float32 zeros of a tensor's shape, where there is a tensor."""
    return None if like is None else torch.zeros_like(like, dtype=torch.float32)


def _normalized(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tensor divided by its largest magnitude, and that magnitude."""
    scale = tensor.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    return tensor / scale, scale
