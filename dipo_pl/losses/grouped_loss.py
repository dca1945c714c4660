"""One loss on one section, evaluated in groups of rows that fit the token budget."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dipo_pl.losses.base import Section, Terms
from dipo_pl.losses.heads import HeadGradients, Heads


class Group(NamedTuple):
    """Consecutive rows that are evaluated together.

    Attributes:
        positions: of the section's positions, those of the group.
        sequences: of the section's sequences, those of the group.
    """

    positions: slice
    sequences: slice


class GroupedLoss:
    """Evaluates the loss of a section, with the logits of at most `token_budget` positions at a time.

    A row is a sequence with its companions, which are next to each other here. A row that has an empty sequence
    is left out.

    Attributes:
        states: [N, d] hidden states of the positions that count, in the order of evaluation.
        count: rows that the mean is over, or positions for a token mean; at least 1.
        loss: scalar float32, without the section's weight, once it is evaluated.
        parts: scalars by name, once they are evaluated.
    """

    def __init__(self, section: Section, token_budget: int) -> None:
        self.loss_function = loss = section.loss
        self.token_budget = token_budget
        self.weight = section.weight
        self.on_logits = loss.layer is None
        self.members = 1 + len(loss.companions)
        self.states, self.targets = section.states, section.targets
        self.reference_states = section.reference_states if loss.uses_reference else None
        device = self.states.device
        self.lengths, order = _counted_sequences(section.lengths, self.members, loss.skip)
        # Copied to the device once, not group by group.
        self.counts = torch.tensor(self.lengths, dtype=torch.long, device=device)
        self.sequence = torch.repeat_interleave(self.counts, output_size=sum(self.lengths))
        if order is not None:
            index = torch.tensor(order, dtype=torch.long, device=device)
            self.states, self.targets = self.states[index], self.targets[index]
            if self.reference_states is not None:
                self.reference_states = self.reference_states[index]
        self.over_tokens = loss.mean_over == "tokens"
        rows = len(self.lengths) // self.members
        self.count = max(1, sum(self.lengths) if self.over_tokens else rows)
        self.loss = torch.zeros(())
        self.parts: dict[str, Tensor] = {}

    def evaluate(
        self, heads: Heads, head_gradients: HeadGradients, by_states: Tensor | None, scale: float
    ) -> Tensor:
        """Return the loss times the section's weight, and sum up its gradients.

        Args:
            heads: of policy and reference.
            head_gradients: to which the gradients on the head are added.
            by_states: [N, d] float32, where those on the states are written; None where they are not wanted.
            scale: factor on all gradients.
        """
        self.heads, self.head_gradients, self.by_states = heads, head_gradients, by_states
        self.scale = self.weight * scale / self.count
        total = torch.zeros((), dtype=torch.float32, device=self.states.device)
        if self.over_tokens:
            for piece in self._pieces(slice(0, len(self.targets))):
                total += self._token_sum(piece)
        else:
            for group in self._groups():
                total += self._group_loss(group)
        self.loss = total / self.count
        return self.weight * self.loss

    def _groups(self) -> Iterator[Group]:
        """Split the rows into groups within the budget, of at least one row; coupled rows are one group."""
        budget = math.inf if self.loss_function.couples_sequences else self.token_budget
        start = stop = first = 0
        for row in range(0, len(self.lengths), self.members):
            count = sum(self.lengths[row : row + self.members])
            if row > first and stop - start + count > budget:
                yield Group(slice(start, stop), slice(first, row))
                start, first = stop, row
            stop += count
        if self.lengths:
            yield Group(slice(start, stop), slice(first, len(self.lengths)))

    def _pieces(self, positions: slice) -> list[slice]:
        starts = range(positions.start, positions.stop, self.token_budget)
        return [slice(start, min(start + self.token_budget, positions.stop)) for start in starts]

    def _token_sum(self, piece: slice) -> Tensor:
        terms = self._terms(piece)
        self._add(piece, terms, torch.full_like(terms.values, self.scale))
        return terms.values.sum()

    def _group_loss(self, group: Group) -> Tensor:
        """Return the sum of f over the group's rows.

        The derivative of f by a term is known only after the row's sum. A group larger than the budget is
        therefore evaluated twice: first its sums, then its gradients.
        """
        pieces = self._pieces(group.positions)
        if len(pieces) == 1:
            terms = self._terms(group.positions)
            value, by_term = self._row_losses(terms.values, group)
            self._add(group.positions, terms, by_term)
            return value
        # A loss may return a view of its logits, which the next piece's overwrite.
        values = [self.loss_function.terms(*self._inputs(piece)).clone() for piece in pieces]
        value, by_term = self._row_losses(torch.cat(values), group)
        for piece, by in zip(pieces, by_term.split(self.token_budget), strict=True):
            self._add(piece, self._terms(piece), by)
        return value

    def _inputs(self, positions: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what a loss is given: logits or hidden states, targets, and the same of the reference."""
        states, targets = self.states[positions], self.targets[positions]
        reference = None if self.reference_states is None else self.reference_states[positions]
        if not self.on_logits:
            return states.float(), targets, None if reference is None else reference.float()
        logits = self.heads.logits("policy", states)
        return logits, targets, None if reference is None else self.heads.logits("reference", reference)

    def _terms(self, positions: slice) -> Terms:
        """Return the terms and their gradients, on logits by the linear head's output h W^T + b."""
        logits, targets, reference_logits = self._inputs(positions)
        if not self.on_logits:
            return self.loss_function.terms_and_gradient(logits, targets, reference_logits)
        # A loss may write into its logits, which the derivative of a soft cap is computed from.
        before = logits.clone() if self.heads.policy.softcap is not None else logits
        terms = self.loss_function.terms_and_gradient(logits, targets, reference_logits)
        self.heads.policy.linear_gradient_(terms.gradient, before)
        return terms

    def _row_losses(self, values: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        """Return the sum of f over rows, and [n] the scaled derivative of the loss by each position's term."""
        sequence = self.sequence[group.positions] - group.sequences.start
        counts = self.counts[group.sequences]
        sums = torch.zeros(len(counts), dtype=torch.float32, device=values.device)
        sums.index_add_(0, sequence, values)
        if self.members > 1:
            sums, counts = sums.view(-1, self.members), counts.view(-1, self.members)
        with torch.enable_grad():
            leaf = sums.detach().requires_grad_()
            value = self.loss_function.sequence_loss(leaf, counts).sum()
            (by_sum,) = torch.autograd.grad(value, leaf)
        self._watch(self.loss_function.sequence_parts(sums, counts), len(self.lengths) // self.members)
        return value.detach(), by_sum.flatten()[sequence] * self.scale

    def _add(self, positions: slice, terms: Terms, by_term: Tensor) -> None:
        self._watch(terms.parts, len(self.targets))
        by_states = None if self.by_states is None else self.by_states[positions]
        if self.on_logits:
            states = self.states[positions]
            self.head_gradients.add(self.heads.policy, states, terms.gradient, by_term, by_states)
        elif by_states is not None:
            torch.mul(terms.gradient, by_term[:, None], out=by_states)

    def _watch(self, parts: dict[str, Tensor], count: int) -> None:
        for name, values in parts.items():
            share = values.sum() / count
            self.parts[name] = self.parts[name] + share if name in self.parts else share


def _counted_sequences(lengths: Sequence[int], members: int, skip: int) -> tuple[list[int], list[int] | None]:
    """Return the lengths of the sequences that count, row by row, and their positions in this order.

    None in place of the positions means all of them as they are. A row counts if none of its sequences is empty.
    """
    rows = len(lengths) // members
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    left = [max(0, length - skip) for length in lengths]
    by_row = [[row + member * rows for member in range(members)] for row in range(rows)]
    sequences = [each for row in by_row if all(left[each] for each in row) for each in row]
    counted = [left[each] for each in sequences]
    if skip == 0 and members == 1 and sum(counted) == starts[-1]:
        return counted, None
    return counted, [at for each in sequences for at in range(starts[each] + skip, starts[each + 1])]
