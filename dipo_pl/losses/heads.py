"""Output heads inside the engine: logits in memory that is used again, products with heads, and sums of gradients."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from dipo_pl.models.head import OutputHead

Model = Literal["policy", "reference"]


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

    @property
    def linear(self) -> bool:
        """Whether no head has a soft cap, so that logits are linear in hidden states."""
        return self.policy.softcap is None and (self.reference is None or self.reference.softcap is None)

    def logits(self, model: Model, states: Tensor) -> Tensor:
        """Return the logits of [n, d] hidden states, [n, V] float32; the next call for the same model overwrites them."""
        head = self._head(model)
        memory = self._memory.get(model)
        if memory is None or len(memory) < len(states):
            memory = states.new_empty(len(states), len(head.weight), dtype=torch.float32)
            self._memory[model] = memory
        return head.logits(states.to(head.weight.dtype), out=memory[: len(states)])

    def by_states(self, model: Model, by_linear: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the derivative of terms by hidden states, [n, d] float32.

        Args:
            model: whose head is meant.
            by_linear: [n, V] derivative of terms by h W^T + b.
            out: [n, d] float32 to write to, or None.
        """
        weight = self._head(model).weight
        if weight.dtype == torch.float32:
            return torch.mm(by_linear, weight, out=out)
        if weight.dtype == torch.float16:
            by_linear, scale = _normalized(by_linear)
            product = (by_linear.half() @ weight).float().mul_(scale)
        else:
            product = by_linear.to(weight.dtype) @ weight
        return product.float() if out is None else out.copy_(product)

    def gap(self, by_linear: Tensor, by_states: Tensor, states: Tensor, reference_states: Tensor) -> Tensor:
        """Return sum_v g_v (z - z_ref)_v of each position, [n] float32, without logits; heads must be `linear`.

        Args:
            by_linear: [n, V] derivative of this sum by the policy's h W^T + b, which is g times the head's scale.
            by_states: [n, d] its derivative by the policy's hidden states.
            states: [n, d] hidden states of the policy.
            reference_states: [n, d'] those of the reference.
        """
        if self.reference is self.policy:
            gap = self._rounded("policy", states) - self._rounded("policy", reference_states)
            shared: Tensor = torch.linalg.vecdot(by_states, gap)
            return shared
        of_reference = self.by_states("reference", by_linear)
        value = self._weighted("reference", by_linear, of_reference, reference_states)
        scale = self._head("reference").scale / self.policy.scale
        return self._weighted("policy", by_linear, by_states, states) - scale * value

    def _weighted(self, model: Model, by_linear: Tensor, by_states: Tensor, states: Tensor) -> Tensor:
        """Return sum_v of `by_linear` times h W^T + b, [n]."""
        values: Tensor = torch.linalg.vecdot(by_states, self._rounded(model, states))
        bias = self._head(model).bias
        return values if bias is None else values + by_linear @ bias.float()

    def _rounded(self, model: Model, states: Tensor) -> Tensor:
        """Return hidden states as the head takes them, so that equal ones have no gap."""
        return states.to(self._head(model).weight.dtype).float()

    def _head(self, model: Model) -> OutputHead:
        head = self.policy if model == "policy" else self.reference
        assert head is not None
        return head


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

    @property
    def wanted(self) -> bool:
        """Whether any gradient on the head is wanted."""
        return self.weight is not None or self.bias is not None

    def add(self, dtype: torch.dtype, states: Tensor, by_linear: Tensor, by_term: Tensor) -> None:
        """Add the gradients of some positions.

        Args:
            dtype: of the products.
            states: [n, d] hidden states.
            by_linear: [n, V] derivative of each position's term by h W^T + b.
            by_term: [n] derivative of the loss by each position's term. It multiplies the [n, d] states here, not
                the much larger [n, V].
        """
        if dtype == torch.float16:
            self._add_float16(states, by_linear, by_term)
            return
        by_linear = by_linear.to(dtype)
        if self.weight is not None:
            weighted = (states * by_term[:, None]).to(dtype)
            if dtype == torch.float32:
                self.weight.addmm_(by_linear.T, weighted)
            else:
                self.weight.add_(by_linear.T @ weighted)
        if self.bias is not None:
            self.bias.add_(by_term.to(dtype) @ by_linear)

    def _add_float16(self, states: Tensor, by_linear: Tensor, by_term: Tensor) -> None:
        """Add with factors normalized to a largest entry of 1: a loss scaler comes too late for what is lost here."""
        by_linear, scale = _normalized(by_linear)
        by_term = by_term * scale
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
