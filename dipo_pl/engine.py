"""The engine: from hidden states to a loss and its gradients, the logits of one group at a time.

Usable on its own, with another trainer: call `sequence_objective`, then `loss.backward()`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dipo_pl.head import OutputHead
from dipo_pl.losses.base import Loss, Terms


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
    if reference_states is not None and len(reference_states) != len(states):
        raise ValueError(f"{len(states)} states and {len(reference_states)} reference states")
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, got {token_budget}")
    if loss.uses_reference and (reference_states is None or reference_head is None):
        raise ValueError(f"{type(loss).__name__} needs reference_states and reference_head")
    walk = _Walk(states, targets, lengths, head, loss, reference_states, reference_head, token_budget)
    value = _Evaluate.apply(states, head.weight, head.bias, walk)  # type: ignore[no-untyped-call]
    assert isinstance(value, Tensor)
    return Objective(value, walk.parts)


class _Walk:
    """One evaluation of a loss over a batch, group by group."""

    def __init__(
        self,
        states: Tensor,
        targets: Tensor,
        lengths: Sequence[int],
        head: OutputHead,
        loss: Loss,
        reference_states: Tensor | None,
        reference_head: OutputHead | None,
        token_budget: int,
    ) -> None:
        self.states = states
        self.targets = targets
        self.lengths = [length for length in lengths if length > 0]
        self.head = head
        self.loss = loss
        self.reference_states = reference_states if loss.uses_reference else None
        self.reference_head = reference_head
        self.token_budget = token_budget
        self.parts: dict[str, Tensor] = {}
        self.count = max(1, sum(lengths) if loss.mean_over == "tokens" else len(self.lengths))

    def groups(self) -> Iterator[tuple[slice, list[int]]]:
        """Consecutive sequences that fit the budget together, at least one: their positions and lengths."""
        start = stop = 0
        group: list[int] = []
        for length in self.lengths:
            if group and stop - start + length > self.token_budget:
                yield slice(start, stop), group
                start, group = stop, []
            group.append(length)
            stop += length
        if group:
            yield slice(start, stop), group

    def pieces(self, span: slice) -> list[slice]:
        """A group's positions, cut by the budget: one piece unless it is a single long sequence."""
        starts = range(span.start, span.stop, self.token_budget)
        return [slice(start, min(start + self.token_budget, span.stop)) for start in starts]

    def cast(self, dtype: torch.dtype | None) -> None:
        """Rounds both heads alike, so that equal models have equal logits; None leaves them as they are."""
        if dtype is not None:
            self.head = self.head.cast(dtype)
            if self.reference_head is not None and self.reference_states is not None:
                self.reference_head = self.reference_head.cast(dtype)

    def inputs(self, span: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a loss is given at `span`: logits, targets, the reference's logits."""
        logits = self.head.logits(self.states[span].to(self.head.weight.dtype))
        reference_logits = None
        if self.reference_states is not None and self.reference_head is not None:
            reference = self.reference_states[span].to(self.reference_head.weight.dtype)
            reference_logits = self.reference_head.logits(reference)
        return logits, self.targets[span], reference_logits

    def evaluate(self, span: slice) -> tuple[Tensor, Terms]:
        """The logits at `span`, the terms there and their gradients."""
        logits, targets, reference_logits = self.inputs(span)
        return logits, self.loss.terms_and_gradient(logits, targets, reference_logits)

    def outer(self, sums: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """A group's share of the loss times `count`, and its derivative by each sequence's sum."""
        with torch.enable_grad():
            leaf = sums.detach().requires_grad_()
            value = self.loss.sequence_loss(leaf, lengths).sum()
            (by_sum,) = torch.autograd.grad(value, leaf)
        return value.detach(), by_sum

    def watch(self, parts: dict[str, Tensor], count: int) -> None:
        for name, values in parts.items():
            share = values.sum() / count
            self.parts[name] = self.parts[name] + share if name in self.parts else share

    def walk_group(self, span: slice, group: list[int], gradients: "_Gradients") -> Tensor:
        """A group's share of the loss; adds its share of the gradients. Both are still times `count`.

        The derivative by a term is known only after the sum over its sequence: where one piece holds
        the whole group the terms' gradients wait for it, else they are made in a second pass.
        """
        lengths = torch.tensor(group, device=self.states.device)
        sequence = torch.repeat_interleave(lengths, output_size=span.stop - span.start)
        pieces = self.pieces(span)
        evaluated = self.evaluate(span) if len(pieces) == 1 else None
        if evaluated is not None:
            values = evaluated[1].values
        else:
            values = torch.cat([self.loss.terms(*self.inputs(piece)) for piece in pieces])
        sums = torch.zeros(len(group), dtype=torch.float32, device=self.states.device)
        sums.index_add_(0, sequence, values)
        value, by_sum = self.outer(sums, lengths)
        for piece, by_term in zip(pieces, torch.split(by_sum[sequence], self.token_budget), strict=True):
            logits, terms = evaluated or self.evaluate(piece)
            gradients.add(self.head, piece, logits, terms.gradient, by_term)
            self.watch(terms.parts, len(self.targets))
            # Before the next piece's are made.
            del logits, terms
        self.watch(self.loss.sequence_parts(sums, lengths), len(self.lengths))
        return value


class _Gradients:
    """The gradients on hidden states and head, summed up piece by piece.

    In float32 whatever the dtypes, and not yet divided by `count`: many small numbers are added here, and
    float16 would lose them before a loss scaler gets to multiply them.
    """

    def __init__(self, states: Tensor, weight: Tensor, bias: Tensor | None, wanted: Sequence[bool]) -> None:
        def zeros(like: Tensor | None, want: bool) -> Tensor | None:
            return torch.zeros_like(like, dtype=torch.float32) if like is not None and want else None

        self.source = states
        self.states = zeros(states, wanted[0])
        self.weight = zeros(weight, wanted[1])
        self.bias = zeros(bias, wanted[2])

    def add(self, head: OutputHead, span: slice, logits: Tensor, terms: Tensor, by_term: Tensor) -> None:
        """Adds the contribution of some positions.

        Args:
            terms: [n, V] derivative of each position's term by its logits; overwritten.
            by_term: [n] derivative of the loss by each position's term. It multiplies [n, d] tensors
                here, not the much larger [n, V].
        """
        dtype = head.weight.dtype
        by_linear = head.linear_gradient_(terms, logits).to(dtype)  # by h W^T + b
        if self.states is not None:
            torch.mul(by_linear @ head.weight, by_term[:, None], out=self.states[span])
        if self.weight is not None:
            weighted = (self.source[span] * by_term[:, None]).to(dtype)
            if dtype == torch.float32:
                self.weight.addmm_(by_linear.T, weighted)
            else:
                self.weight.add_(by_linear.T @ weighted)
        if self.bias is not None:
            self.bias.add_(by_term.to(dtype) @ by_linear)


class _Evaluate(torch.autograd.Function):
    """Takes the gradients while the logits are there; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, walk: _Walk) -> Tensor:
        device = states.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        gradients = _Gradients(states, weight, bias, ctx.needs_input_grad)
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        with torch.autocast(device, enabled=False):
            walk.cast(autocast)
            for span, group in walk.groups():
                total += walk.walk_group(span, group, gradients)
        ctx.count = walk.count
        ctx.save_for_backward(gradients.states, gradients.weight, gradients.bias)
        return total / walk.count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_of_loss: Tensor) -> tuple[Tensor | None, ...]:
        factor = gradient_of_loss / ctx.count
        # Autograd casts what is returned to the dtypes of what came in.
        return (*(None if each is None else each * factor for each in ctx.saved_tensors), None)
