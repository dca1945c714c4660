"""The engine: from hidden states to a loss and its gradients, the logits of one group at a time.

Usable on its own, with another trainer: call `sequence_objective`, or `joint_objective` for several losses
at once, then `loss.backward()`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dipo_pl.losses.base import Loss, Terms
from dipo_pl.models.head import OutputHead, default_token_budget


@dataclass
class Section:
    """The sequences that one loss is taken over.

    Attributes:
        loss: see `Loss`.
        states: [N, d] hidden states at the positions that predict answer tokens: the last ones, or those
            of `loss.layer`.
        targets: [N] the tokens to be predicted.
        lengths: positions of each sequence, in order; they sum to N. An empty sequence counts for nothing.
            Where the loss has companions, the rows' own sequences come first, then those of each
            companion in the rows' order.
        reference_states: [N, d'] the reference's, where the loss uses one.
        weight: factor on the loss.
    """

    loss: Loss
    states: Tensor
    targets: Tensor
    lengths: Sequence[int]
    reference_states: Tensor | None = None
    weight: float = 1.0


@dataclass
class Objective:
    """A loss and what is worth watching of it.

    Attributes:
        loss: scalar float32, differentiable in the hidden states and the head.
        parts: detached scalars by name.
    """

    loss: Tensor
    parts: dict[str, Tensor]


@dataclass
class JointObjective:
    """Several losses, weighted and added.

    Attributes:
        loss: scalar float32, differentiable in the hidden states and the head.
        sections: by name, each section's own loss without its weight, detached, and its parts.
    """

    loss: Tensor
    sections: dict[str, Objective]


def sequence_objective(
    states: Tensor,
    targets: Tensor,
    lengths: Sequence[int],
    head: OutputHead,
    loss: Loss,
    reference_states: Tensor | None = None,
    reference_head: OutputHead | None = None,
    token_budget: int | None = None,
) -> Objective:
    """`loss` on sequences, without ever holding the logits of more than `token_budget` positions.

    Arguments and errors are those of `joint_objective`, of which this is the case of one section.
    """
    section = Section(loss, states, targets, lengths, reference_states)
    joint = joint_objective({"": section}, head, reference_head, token_budget)
    return Objective(joint.loss, joint.sections[""].parts)


def joint_objective(
    sections: Mapping[str, Section],
    head: OutputHead,
    reference_head: OutputHead | None = None,
    token_budget: int | None = None,
) -> JointObjective:
    """The weighted sum of several losses, without ever holding the logits of more than `token_budget` positions.

    Groups of whole sequences are walked one after another; each group's gradients on the hidden states
    and on the head are taken at once, and only they are kept. A sequence longer than the budget is
    walked twice in pieces: first its sum, then its gradients. A token mean needs no sums, and is
    walked in pieces of the budget.

    Args:
        sections: by name.
        head: the policy's.
        reference_head: the reference's, where a loss of logits uses it.
        token_budget: positions whose logits exist at a time; None is `default_token_budget`.

    Raises:
        ValueError: shapes disagree, the budget is below 1, or a reference is missing.
        RuntimeError: from backward(), if it is called twice: gradients are scaled in place.
    """
    if token_budget is not None and token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, got {token_budget}")
    for section in sections.values():
        _check(section, reference_head)
    budget = token_budget or default_token_budget(head.weight.device)
    on_logits = any(section.loss.layer is None for section in sections.values())
    heads = _Heads(head, reference_head).converted(OutputHead.gathered) if on_logits else _Heads(head, None)
    walks = [_Walk(section, heads, budget) for section in sections.values()]
    weight, bias = heads.policy.weight, heads.policy.bias
    # The walks hold the states too, but autograd follows only what is an argument.
    states = [walk.states for walk in walks]
    loss = _Evaluate.apply(weight, bias, heads, walks, *states)  # type: ignore[no-untyped-call]
    assert isinstance(loss, Tensor)
    return JointObjective(
        loss, {name: Objective(walk.loss, walk.parts) for name, walk in zip(sections, walks, strict=True)}
    )


def _check(section: Section, reference_head: OutputHead | None) -> None:
    loss, count = section.loss, len(section.states)
    if sum(section.lengths) != count or len(section.targets) != count:
        raise ValueError(
            f"{count} states, {len(section.targets)} targets and {sum(section.lengths)} positions in `lengths`"
        )
    if section.reference_states is not None and len(section.reference_states) != count:
        raise ValueError(f"{count} states and {len(section.reference_states)} reference states")
    if len(section.lengths) % (1 + len(loss.companions)):
        raise ValueError(
            f"{len(section.lengths)} sequences: {type(loss).__name__} wants {1 + len(loss.companions)} a row"
        )
    if loss.uses_reference and (
        section.reference_states is None or (loss.layer is None and reference_head is None)
    ):
        raise ValueError(f"{type(loss).__name__} needs reference_states and reference_head")


@dataclass
class _Heads:
    policy: OutputHead
    reference: OutputHead | None
    # For the logits of each, one group's after another's.
    memory: dict[str, Tensor] = field(default_factory=dict)

    def converted(self, convert: Callable[[OutputHead], OutputHead]) -> "_Heads":
        """Both alike; once where the reference's is the policy's own."""
        policy, reference = convert(self.policy), self.reference
        if reference is not None:
            shared = reference.weight is self.policy.weight and reference.bias is self.policy.bias
            reference = policy if shared else convert(reference)
        return _Heads(policy, reference)

    def logits(self, whose: Literal["policy", "reference"], states: Tensor) -> Tensor:
        """Valid until the next are asked for."""
        head = self.policy if whose == "policy" else self.reference
        assert head is not None
        memory = self.memory.get(whose)
        if memory is None or len(memory) < len(states):
            memory = states.new_empty(len(states), len(head.weight), dtype=torch.float32)
            self.memory[whose] = memory
        return head.logits(states.to(head.weight.dtype), out=memory[: len(states)])


class _Walk:
    """One evaluation of a loss over a section, group by group.

    A unit is what f is of: a sequence, or one with its companions. Its sequences lie side by side here.
    """

    def __init__(self, section: Section, heads: "_Heads", token_budget: int) -> None:
        self.loss_function = loss = section.loss
        self.heads = heads
        self.token_budget = token_budget
        self.weight = section.weight
        self.members = 1 + len(loss.companions)
        lengths, order = _units(section.lengths, self.members, loss.skip)
        self.lengths = lengths
        self.states, self.targets = section.states, section.targets
        # Copied to the device once, not group by group.
        self.counts = torch.tensor(lengths, dtype=torch.long, device=self.states.device)
        self.sequence = torch.repeat_interleave(self.counts, output_size=sum(lengths))
        self.reference_states = section.reference_states if loss.uses_reference else None
        if order is not None:
            index = torch.tensor(order, dtype=torch.long, device=self.states.device)
            self.states, self.targets = self.states[index], self.targets[index]
            if self.reference_states is not None:
                self.reference_states = self.reference_states[index]
        self.over_tokens = loss.mean_over == "tokens"
        self.count = max(1, sum(lengths) if self.over_tokens else len(lengths) // self.members)
        self.loss = torch.zeros(())
        self.parts: dict[str, Tensor] = {}

    @property
    def head(self) -> OutputHead | None:
        """None where the loss acts on the states themselves."""
        return self.heads.policy if self.loss_function.layer is None else None

    def groups(self) -> Iterator[tuple[slice, slice]]:
        """Consecutive units that fit the budget together, at least one: their positions and sequences."""
        start = stop = first = 0
        for row in range(0, len(self.lengths), self.members):
            unit = sum(self.lengths[row : row + self.members])
            if row > first and stop - start + unit > self.token_budget:
                yield slice(start, stop), slice(first, row)
                start, first = stop, row
            stop += unit
        if self.lengths:
            yield slice(start, stop), slice(first, len(self.lengths))

    def pieces(self, span: slice) -> list[slice]:
        """Positions cut by the budget."""
        starts = range(span.start, span.stop, self.token_budget)
        return [slice(start, min(start + self.token_budget, span.stop)) for start in starts]

    def inputs(self, span: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a loss is given at `span`: logits, targets, the reference's logits."""
        logits_of = self.heads.logits if self.loss_function.layer is None else _themselves
        logits = logits_of("policy", self.states[span])
        if self.reference_states is None:
            return logits, self.targets[span], None
        return logits, self.targets[span], logits_of("reference", self.reference_states[span])

    def evaluate(self, span: slice) -> Terms:
        """The terms at `span` and their gradients by the linear head's output, h W^T + b."""
        logits, targets, reference_logits = self.inputs(span)
        # A loss may write into its logits, and a soft cap's derivative is made of them.
        before = logits.clone() if self.head is not None and self.head.softcap is not None else logits
        terms = self.loss_function.terms_and_gradient(logits, targets, reference_logits)
        if self.head is not None:
            self.head.linear_gradient_(terms.gradient, before)
        return terms

    def run(self, gradients: "_Gradients") -> Tensor:
        """The weighted loss; its gradients, times `gradients.unit`, are added to `gradients`."""
        scale = self.weight * gradients.unit / self.count
        if self.over_tokens:
            total = self._walk_tokens(gradients, scale)
        elif self.loss_function.couples_sequences and self.lengths:
            everything = slice(0, len(self.targets)), slice(0, len(self.lengths))
            total = self._walk_twice(*everything, gradients, scale)
        else:
            total = torch.zeros((), dtype=torch.float32, device=self.states.device)
            for span, rows in self.groups():
                total += self._walk_group(span, rows, gradients, scale)
        self.loss = total / self.count
        return self.weight * self.loss

    def _walk_tokens(self, gradients: "_Gradients", scale: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=self.states.device)
        for piece in self.pieces(slice(0, len(self.targets))):
            terms = self.evaluate(piece)
            total += terms.values.sum()
            gradients.add(self, piece, terms.gradient, torch.full_like(terms.values, scale))
            self._watch(terms.parts, len(self.targets))
            # Before the next piece's are made.
            del terms
        return total

    def _walk_group(self, span: slice, rows: slice, gradients: "_Gradients", scale: float) -> Tensor:
        """Units whose derivatives by their terms are known only after the sums over their sequences.

        Where one piece holds them all the terms' gradients wait for these, else they are made in a second pass.
        """
        if len(self.pieces(span)) > 1:
            return self._walk_twice(span, rows, gradients, scale)
        terms = self.evaluate(span)
        value, by_term = self._outer(self._sum(terms.values, span, rows), span, rows)
        gradients.add(self, span, terms.gradient, by_term * scale)
        self._watch(terms.parts, len(self.targets))
        return value

    def _walk_twice(self, span: slice, rows: slice, gradients: "_Gradients", scale: float) -> Tensor:
        value, by_term = self._outer(self._sums(span, rows), span, rows)
        for piece, by in zip(self.pieces(span), torch.split(by_term * scale, self.token_budget), strict=True):
            terms = self.evaluate(piece)
            gradients.add(self, piece, terms.gradient, by)
            self._watch(terms.parts, len(self.targets))
            del terms
        return value

    def _sums(self, span: slice, rows: slice) -> Tensor:
        """[S] the sequences' sums, in pieces and without gradients."""
        # A loss may return a view of its logits, and the next piece's take their place.
        values = [self.loss_function.terms(*self.inputs(piece)).clone() for piece in self.pieces(span)]
        return self._sum(torch.cat(values), span, rows)

    def _sum(self, values: Tensor, span: slice, rows: slice) -> Tensor:
        sums = torch.zeros(rows.stop - rows.start, dtype=torch.float32, device=values.device)
        return sums.index_add_(0, self.sequence[span] - rows.start, values)

    def _outer(self, sums: Tensor, span: slice, rows: slice) -> tuple[Tensor, Tensor]:
        """The sum of f over units, and [N] its derivative by each position's term."""
        loss, counts = self.loss_function, self.counts[rows]
        if self.members > 1:
            sums, counts = sums.view(-1, self.members), counts.view(-1, self.members)
        with torch.enable_grad():
            leaf = sums.detach().requires_grad_()
            value = loss.sequence_loss(leaf, counts).sum()
            (by_sum,) = torch.autograd.grad(value, leaf)
        self._watch(loss.sequence_parts(sums, counts), len(self.lengths) // self.members)
        return value.detach(), by_sum.flatten()[self.sequence[span] - rows.start]

    def _watch(self, parts: dict[str, Tensor], count: int) -> None:
        for name, values in parts.items():
            share = values.sum() / count
            self.parts[name] = self.parts[name] + share if name in self.parts else share


def _themselves(whose: str, states: Tensor) -> Tensor:
    """In the place of logits, for a loss on hidden states."""
    return states.float()


def _units(lengths: Sequence[int], members: int, skip: int) -> tuple[list[int], list[int] | None]:
    """Lengths of the sequences that count, unit by unit, and the positions they take, in that order.

    None in place of the positions where they are all there, in order. A unit counts if none of its
    sequences is empty.
    """
    rows = len(lengths) // members
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    left = [max(0, length - skip) for length in lengths]
    units = [[row + member * rows for member in range(members)] for row in range(rows)]
    sequences = [each for unit in units if all(left[each] for each in unit) for each in unit]
    counted = [left[each] for each in sequences]
    if skip == 0 and members == 1 and sum(counted) == starts[-1]:
        return counted, None
    return counted, [at for each in sequences for at in range(starts[each] + skip, starts[each + 1])]


class _Gradients:
    """The gradients on hidden states and head, summed up piece by piece.

    In float32 whatever the dtypes, and times `unit`: many small numbers are added here, and float16 would
    lose them before a loss scaler gets to multiply them.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, walks: Sequence[_Walk], wanted: Sequence[bool]
    ) -> None:
        def zeros(like: Tensor | None, want: bool) -> Tensor | None:
            return torch.zeros_like(like, dtype=torch.float32) if like is not None and want else None

        self.unit = max(walk.count for walk in walks)
        on_logits = any(walk.head is not None for walk in walks)
        self.weight = zeros(weight, wanted[0] and on_logits)
        self.bias = zeros(bias, wanted[1] and on_logits)
        self.states = [zeros(walk.states, want) for walk, want in zip(walks, wanted[4:], strict=True)]
        self._of = dict(zip(map(id, walks), self.states, strict=True))

    def add(self, walk: _Walk, span: slice, by_linear: Tensor, by_term: Tensor) -> None:
        """Adds the contribution of some positions.

        Args:
            by_linear: [n, V] derivative of each position's term by h W^T + b.
            by_term: [n] derivative of the loss by each position's term. It multiplies [n, d] tensors
                here, not the much larger [n, V].
        """
        head, states = walk.head, self._of[id(walk)]
        if head is None:
            if states is not None:
                torch.mul(by_linear, by_term[:, None], out=states[span])
            return
        dtype = head.weight.dtype
        if dtype == torch.float16:
            self._add_in_float16(walk, span, by_linear, by_term)
            return
        by_linear = by_linear.to(dtype)
        if states is not None:
            torch.mul(by_linear @ head.weight, by_term[:, None], out=states[span])
        if self.weight is not None:
            weighted = (walk.states[span] * by_term[:, None]).to(dtype)
            if dtype == torch.float32:
                self.weight.addmm_(by_linear.T, weighted)
            else:
                self.weight.add_(by_linear.T @ weighted)
        if self.bias is not None:
            self.bias.add_(by_term.to(dtype) @ by_linear)

    def _add_in_float16(self, walk: _Walk, span: slice, by_linear: Tensor, by_term: Tensor) -> None:
        """The same with factors of largest entry 1: a loss scaler comes too late for what is lost here."""
        assert walk.head is not None
        by_linear, by_linear_unit = _of_size_one(by_linear)
        by_term = by_term * by_linear_unit
        states = self._of[id(walk)]
        if states is not None:
            torch.mul(by_linear.half() @ walk.head.weight, by_term[:, None], out=states[span])
        if self.weight is not None:
            weighted, unit = _of_size_one(walk.states[span].float() * by_term[:, None])
            self.weight.add_((by_linear.half().T @ weighted.half()).float().mul_(unit))
        if self.bias is not None:
            self.bias.add_(by_term @ by_linear)


def _of_size_one(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor divided by its largest magnitude, and that."""
    unit = tensor.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    return tensor / unit, unit


class _Evaluate(torch.autograd.Function):
    """Takes the gradients while the logits are there; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, heads: _Heads, walks: Sequence[_Walk], *states: Tensor
    ) -> Tensor:
        device = weight.device.type
        if torch.is_autocast_enabled(device):
            # Both rounded alike, so that equal models have equal logits.
            dtype = torch.get_autocast_dtype(device)
            heads = heads.converted(lambda head: head.cast(dtype))
            for walk in walks:
                walk.heads = heads
        gradients = _Gradients(weight, bias, walks, ctx.needs_input_grad)
        total = torch.zeros((), dtype=torch.float32, device=weight.device)
        with torch.autocast(device, enabled=False):
            for walk in walks:
                total = total + walk.run(gradients)
        ctx.unit = gradients.unit
        ctx.gradients = [gradients.weight, gradients.bias, *gradients.states]
        ctx.dtypes = [None if each is None else each.dtype for each in (weight, bias, *states)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_of_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "backward() a second time: the gradients have been handed over; evaluate again"
            )
        factor = gradient_of_loss / ctx.unit
        # In place: a second [V, d] would be the largest tensor of a small model's step.
        weight, bias, *states = (
            None if each is None else each.mul_(factor).to(dtype)
            for each, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        )
        ctx.gradients = None
        return (weight, bias, None, None, *states)
