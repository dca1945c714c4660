"""One loss on one section, evaluated in groups of rows that fit the token budget."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dipo_pl.losses.base import Section, Terms
from dipo_pl.losses.gap import GapLoss
from dipo_pl.losses.heads import HeadGradients, Heads
from dipo_pl.losses.positions import Positions, counted_rows
from dipo_pl.losses.row_weights import until_weights


class Group(NamedTuple):
    """Consecutive rows that are evaluated together.

    Attributes:
        positions: of the positions with gradients, those of the group.
        sequences: of the sequences with gradients, those of the group.
        rows: of the rows, those of the group.
    """

    positions: slice
    sequences: slice
    rows: slice


class GroupedLoss:
    """Evaluates the loss of a section, with the logits of at most `token_budget` positions at a time.

    A row is a sequence with its companions. Those that the gradient reaches are next to each other here; those that are
    constants are evaluated first. A row that has an empty sequence is left out.

    Attributes:
        states: [N, d] hidden states of the positions that get gradients, in the order of evaluation.
        count: rows that the mean is over, or positions for a token mean; at least 1.
        loss: scalar float32, without the section's weight, once it is evaluated.
        parts: scalars by name, once they are evaluated.
    """

    def __init__(self, section: Section, token_budget: int) -> None:
        self.loss_function = loss = section.loss
        self.token_budget = token_budget
        self.weight = section.weight
        self.until = section.until
        self.on_logits = loss.layer is None
        kinds = ("", *loss.companions)
        self.constant = [kinds.index(kind) for kind in loss.constant_companions]
        self.varying = [each for each in range(len(kinds)) if each not in self.constant]
        rows = counted_rows(section)
        self.rows = len(rows)
        self.positions = Positions.of(section, [row[each] for row in rows for each in self.varying])
        self.constants = Positions.of(section, [row[each] for row in rows for each in self.constant])
        self.states = self.positions.states
        self.over_tokens = loss.mean_over == "tokens"
        self.count = max(1, len(self.positions) if self.over_tokens else self.rows)
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
        self.trains_head = self.on_logits and head_gradients.wanted
        self.gap = self.loss_function if isinstance(self.loss_function, GapLoss) and heads.linear else None
        self.scale = self.weight * scale / self.count
        self.row_weights = self._row_weights()
        total = torch.zeros((), dtype=torch.float32, device=self.states.device)
        if self.over_tokens:
            for piece in self._pieces(slice(0, len(self.positions))):
                total += self._token_sum(piece)
        elif self.rows:
            self._evaluate_constants()
            for group in self._groups():
                total += self._group_loss(group)
        self.loss = total / self.count
        return self.weight * self.loss

    def _groups(self) -> Iterator[Group]:
        """Split the rows into groups within the budget, of at least one row; coupled rows are one group."""
        budget = math.inf if self.loss_function.couples_sequences else self.token_budget
        members, lengths = len(self.varying), self.positions.lengths
        start = stop = first = 0

        def group(last: int) -> Group:
            return Group(slice(start, stop), slice(first * members, last * members), slice(first, last))

        for row in range(self.rows):
            count = sum(lengths[row * members : (row + 1) * members])
            if row > first and stop - start + count > budget:
                yield group(row)
                start, first = stop, row
            stop += count
        yield group(self.rows)

    def _pieces(self, positions: slice) -> list[slice]:
        starts = range(positions.start, positions.stop, self.token_budget)
        return [slice(start, min(start + self.token_budget, positions.stop)) for start in starts]

    def _row_weights(self) -> Tensor:
        """Return the weight of each row, [rows]."""
        if self.until is None or not self.rows:
            return torch.ones(self.rows, dtype=torch.float32, device=self.states.device)
        pieces = self._pieces(slice(0, len(self.positions)))
        weights = until_weights(self.positions, pieces, self.heads, self.until)
        # Of a row and its companions, which follow each other, the first.
        own = weights[:: len(self.varying)]
        self._watch({"remaining": own}, self.rows)
        return own

    def _token_sum(self, piece: slice) -> Tensor:
        terms = self._terms(piece)
        self._watch(terms.parts, len(self.positions))
        weights = self.row_weights[self.positions.sequence[piece] // len(self.varying)]
        self._finish(piece, terms.gradient, self.scale * weights)
        return (terms.values * weights).sum()

    def _evaluate_constants(self) -> None:
        """Evaluate what f takes in the place of the sums of constant companions, [rows, companions]."""
        shape = self.rows, len(self.constant)
        self.constant_counts = self.constants.counts.view(shape)
        self.constant_sums = torch.zeros(shape, dtype=torch.float32, device=self.states.device)
        if self.constant:
            everything = slice(0, len(self.constants))
            values = [self._values(self.constants, piece) for piece in self._pieces(everything)]
            sums = self.constants.sums(torch.cat(values), slice(0, len(self.constants.lengths)), everything)
            self.constant_sums = self.loss_function.constant_sums(sums.view(shape), self.constant_counts)

    def _group_loss(self, group: Group) -> Tensor:
        """Return the sum of f over the group's rows.

        The derivative of f by a term is known only after the row's sum. Gradients by hidden states wait for it, but
        those by the head are sums over positions: where the head is trained, a group larger than the budget is evaluated
        twice, first its sums, then its gradients.
        """
        pieces = self._pieces(group.positions)
        if self.trains_head and len(pieces) > 1:
            return self._in_two_passes(group, pieces)
        values = []
        for piece in pieces:
            terms = self._terms(piece)
            self._watch(terms.parts, len(self.positions))
            # A loss may return a view of its logits, which the next piece's overwrite.
            values.append(terms.values if len(pieces) == 1 else terms.values.clone())
        value, by_term = self._row_losses(torch.cat(values), group)
        self._finish(group.positions, terms.gradient, by_term)
        return value

    def _in_two_passes(self, group: Group, pieces: list[slice]) -> Tensor:
        if self.gap is None:
            values = [self._values(self.positions, piece) for piece in pieces]
        else:
            values = [self._terms(piece).values for piece in pieces]
        value, by_term = self._row_losses(torch.cat(values), group)
        for piece, by in zip(pieces, by_term.split(self.token_budget), strict=True):
            # Gradients of the gap by hidden states are there since the first pass.
            terms = self._terms(piece) if self.gap is None else self._gap_weights(piece)
            self._watch(terms.parts, len(self.positions))
            self._finish(piece, terms.gradient, by)
        return value

    def _inputs(self, positions: Positions, span: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what a loss is given: logits or hidden states, targets, and the same of the reference."""
        states, targets, reference = positions.given(span)
        if not self.on_logits:
            return states.float(), targets, None if reference is None else reference.float()
        logits = self.heads.logits("policy", states)
        return logits, targets, None if reference is None else self.heads.logits("reference", reference)

    def _values(self, positions: Positions, span: slice) -> Tensor:
        return self.loss_function.terms(*self._inputs(positions, span)).clone()

    def _terms(self, span: slice) -> Terms:
        """Return the terms and their gradients, on logits by the linear head's output h W^T + b.

        Gradients of the terms by hidden states are written to `by_states`.
        """
        by_states = None if self.by_states is None else self.by_states[span]
        if not self.on_logits:
            terms = self.loss_function.terms_and_gradient(*self._inputs(self.positions, span))
            if by_states is not None:
                by_states.copy_(terms.gradient)
            return terms
        terms = self._gap_weights(span) if self.gap is not None else self._linear_terms(span)
        if self.gap is None and by_states is None:
            return terms
        product = self.heads.by_states("policy", terms.gradient, out=by_states)
        if self.gap is None:
            return terms
        states, _, reference_states = self.positions.given(span)
        assert reference_states is not None
        return terms._replace(values=self.heads.gap(terms.gradient, product, states, reference_states))

    def _linear_terms(self, span: slice) -> Terms:
        logits, targets, reference_logits = self._inputs(self.positions, span)
        # A loss may write into its logits, which the derivative of a soft cap is computed from.
        before = logits.clone() if self.heads.policy.softcap is not None else logits
        terms = self.loss_function.terms_and_gradient(logits, targets, reference_logits)
        self.heads.policy.linear_gradient_(terms.gradient, before)
        return terms

    def _gap_weights(self, span: slice) -> Terms:
        """Return the gradients of a loss of the gap, without its terms, from the logits of one model."""
        assert self.gap is not None
        states, targets, reference_states = self.positions.given(span)
        source = states if self.gap.weights_from == "policy" else reference_states
        assert source is not None
        logits = self.heads.logits(self.gap.weights_from, source)
        weights, parts = self.gap.gap_weights(logits, targets)
        return Terms(weights.new_empty(0), self.heads.policy.linear_gradient_(weights, weights), parts)

    def _row_losses(self, values: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        """Return the sum of f over rows, and [n] the scaled derivative of the loss by each position's term."""
        sums = self.positions.sums(values, group.sequences, group.positions)
        counts = self._by_member(self.positions.counts[group.sequences], self.constant_counts[group.rows])
        with torch.enable_grad():
            leaf = sums.detach().requires_grad_()
            every = self._by_member(leaf, self.constant_sums[group.rows])
            losses = self.loss_function.sequence_loss(every, counts)
            value = (losses * self.row_weights[group.rows]).sum()
            (by_sum,) = torch.autograd.grad(value, leaf)
        self._watch(self.loss_function.sequence_parts(every.detach(), counts), self.rows)
        sequence = self.positions.sequence[group.positions] - group.sequences.start
        return value.detach(), by_sum[sequence] * self.scale

    def _by_member(self, varying: Tensor, constant: Tensor) -> Tensor:
        """Return values of sequences as f takes them: [rows], or [rows, 1 + companions]."""
        order = [*self.varying, *self.constant]
        columns = [*varying.view(-1, len(self.varying)).unbind(1), *constant.unbind(1)]
        if len(columns) == 1:
            return varying
        return torch.stack([columns[order.index(each)] for each in range(len(order))], dim=1)

    def _finish(self, span: slice, by_linear: Tensor, by_term: Tensor) -> None:
        """Multiply gradients of terms by the derivative by the term, and add those on the head."""
        if self.by_states is not None:
            self.by_states[span].mul_(by_term[:, None])
        if self.trains_head:
            dtype = self.heads.policy.weight.dtype
            self.head_gradients.add(dtype, self.states[span], by_linear, by_term)

    def _watch(self, parts: dict[str, Tensor], count: int) -> None:
        for name, values in parts.items():
            share = values.sum() / count
            self.parts[name] = self.parts[name] + share if name in self.parts else share
