"""The engine: from hidden states to a loss and its gradients, the logits of one group at a time.

Usable on its own, with another trainer: call `sequence_objective`, then `loss.backward()`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dipo_pl.head import OutputHead
from dipo_pl.losses.base import Loss


@dataclass
class Objective:
    """A loss and what is worth watching of it.

    Attributes:
        loss: scalar float32, differentiable in the hidden states and the head.
        parts: detached scalars by name.
    """

    loss: Tensor
    parts: dict[str, Tensor]


def sequence_objective(
    states: Tensor,
    targets: Tensor,
    lengths: Sequence[int],
    head: OutputHead,
    loss: Loss,
    reference_states: Tensor | None = None,
    reference_head: OutputHead | None = None,
    token_budget: int = 512,
) -> Objective:
    """Evaluates `loss` on sequences without ever holding the logits of more than `token_budget` positions.

    Groups of whole sequences are walked one after another; each group's gradients on the hidden states
    and on the head are taken at once, and only they are kept. A sequence longer than the budget is
    walked twice in pieces: first its sum, then its gradients.

    Args:
        states: [N, d] last hidden states at the positions that predict answer tokens.
        targets: [N] the tokens to be predicted.
        lengths: positions of each sequence, in order; they sum to N. An empty sequence counts for nothing.
        head: the policy's.
        loss: see `Loss`.
        reference_states, reference_head: the reference's, where the loss uses one; [N, d'].
        token_budget: positions whose logits exist at a time.

    Raises:
        ValueError: shapes disagree, the budget is below 1, or a reference is missing.
    """
    if sum(lengths) != len(states) or len(targets) != len(states):
        raise ValueError(
            f"{len(states)} states, {len(targets)} targets and {sum(lengths)} positions in `lengths`"
        )
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, got {token_budget}")
    if loss.uses_reference and (reference_states is None or reference_head is None):
        raise ValueError(f"{type(loss).__name__} needs reference_states and reference_head")
    walk = _Walk(targets, lengths, head, loss, reference_states, reference_head, token_budget)
    value = _Evaluate.apply(states, head.weight, head.bias, walk)
    assert isinstance(value, Tensor)
    return Objective(value, walk.parts)


class _Walk:
    """One evaluation of a loss over a batch, group by group."""

    def __init__(
        self,
        targets: Tensor,
        lengths: Sequence[int],
        head: OutputHead,
        loss: Loss,
        reference_states: Tensor | None,
        reference_head: OutputHead | None,
        token_budget: int,
    ) -> None:
        self.targets = targets
        self.lengths = lengths
        self.head = head
        self.loss = loss
        self.reference_states = reference_states if loss.uses_reference else None
        self.reference_head = reference_head
        self.token_budget = token_budget
        self.parts: dict[str, Tensor] = {}
        over_tokens = loss.mean_over == "tokens"
        self.count = max(1, sum(lengths) if over_tokens else sum(length > 0 for length in lengths))

    def groups(self) -> Iterator[tuple[slice, list[int]]]:
        """Consecutive non-empty sequences that fit the budget together: their positions, their lengths."""
        start = stop = 0
        group: list[int] = []
        for length in self.lengths:
            if group and length and stop - start + length > self.token_budget:
                yield slice(start, stop), group
                start, group = stop, []
            if length:
                group.append(length)
            stop += length
        if group:
            yield slice(start, stop), group

    def pieces(self, span: slice) -> Iterator[slice]:
        for start in range(span.start, span.stop, self.token_budget):
            yield slice(start, min(start + self.token_budget, span.stop))

    def reference_logits(self, span: slice) -> Tensor | None:
        if self.reference_states is None or self.reference_head is None:
            return None
        head = self.reference_head
        return head.logits(self.reference_states[span].to(head.weight.dtype))

    def outer(self, sums: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The group's share of the loss, and its derivative by each sequence's sum."""
        with torch.enable_grad():
            leaf = sums.detach().requires_grad_()
            value = self.loss.sequence_loss(leaf, lengths).sum() / self.count
            (weights,) = torch.autograd.grad(value, leaf)
        return value.detach(), weights

    def watch(self, parts: dict[str, Tensor], count: int) -> None:
        for name, values in parts.items():
            share = values.sum() / count
            self.parts[name] = self.parts[name] + share if name in self.parts else share


class _Evaluate(torch.autograd.Function):
    """Takes the gradients while the logits are there; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, walk: _Walk) -> Tensor:
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        wants_states, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        with torch.autocast(device, enabled=False):
            head = walk.head.to(weight.to(dtype), None if bias is None else bias.to(dtype))
            states_gradient = torch.zeros_like(states) if wants_states else None
            weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
            bias_gradient = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
            total = torch.zeros((), device=states.device)

            def backpropagate(span: slice, gradient: Tensor, logits: Tensor) -> None:
                gradient = head.linear_gradient_(gradient, logits).to(dtype)
                if states_gradient is not None:
                    states_gradient[span] = (gradient @ head.weight).to(states.dtype)
                if weight_gradient is not None:
                    if dtype == torch.float32:
                        weight_gradient.addmm_(gradient.T, states[span].to(dtype))
                    else:
                        weight_gradient.add_(gradient.T @ states[span].to(dtype))
                if bias_gradient is not None:
                    bias_gradient.add_(gradient.sum(0, dtype=torch.float32))

            for span, group in walk.groups():
                lengths = torch.tensor(group, device=states.device)
                if span.stop - span.start <= walk.token_budget:
                    sequence = torch.repeat_interleave(lengths, output_size=span.stop - span.start)
                    logits = head.logits(states[span].to(dtype))
                    values, gradient, parts = walk.loss.terms_and_gradient(
                        logits, walk.targets[span], walk.reference_logits(span)
                    )
                    sums = torch.zeros(len(group), device=states.device).index_add_(0, sequence, values)
                    value, weights = walk.outer(sums, lengths)
                    walk.watch(parts, len(walk.targets))
                    backpropagate(span, gradient.mul_(weights[sequence, None]), logits)
                else:
                    sums = torch.zeros(1, device=states.device)
                    for piece in walk.pieces(span):
                        logits = head.logits(states[piece].to(dtype))
                        sums += walk.loss.terms(
                            logits, walk.targets[piece], walk.reference_logits(piece)
                        ).sum()
                    value, weights = walk.outer(sums, lengths)
                    for piece in walk.pieces(span):
                        logits = head.logits(states[piece].to(dtype))
                        _, gradient, parts = walk.loss.terms_and_gradient(
                            logits, walk.targets[piece], walk.reference_logits(piece)
                        )
                        walk.watch(parts, len(walk.targets))
                        backpropagate(piece, gradient.mul_(weights), logits)
                walk.watch(
                    walk.loss.sequence_parts(sums, lengths), sum(length > 0 for length in walk.lengths)
                )
                total += value
        ctx.save_for_backward(states_gradient, weight_gradient, bias_gradient)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, gradient_of_loss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        states_gradient, weight_gradient, bias_gradient = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if states_gradient is None else states_gradient * gradient_of_loss.to(states_gradient.dtype),
            None if weight_gradient is None else (weight_gradient * gradient_of_loss).to(weight_dtype),
            None if bias_gradient is None else (bias_gradient * gradient_of_loss).to(bias_dtype),
            None,
        )
