"""Positions that a loss counts, row by row, and those of companions that are constants in its gradient."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from dipo_pl.losses.base import Section


@dataclass
class Positions:
    """Answer positions of sequences that follow each other, with the same number of sequences for each row.

    Attributes:
        states: [N, d] hidden states.
        targets: [N] the tokens to be predicted.
        reference_states: [N, d'] the reference's, or None.
        lengths: positions of each sequence.
        counts: [S] the same, on the device.
        sequence: [N] the sequence of each position.
    """

    states: Tensor
    targets: Tensor
    reference_states: Tensor | None
    lengths: list[int]
    counts: Tensor
    sequence: Tensor

    @classmethod
    def of(cls, section: Section, sequences: Sequence[int]) -> "Positions":
        """Return the positions of some of a section's sequences, in this order, without those that its loss skips."""
        skip, device = section.loss.skip, section.states.device
        starts = [0, *accumulate(section.lengths)]
        lengths = [section.lengths[each] - skip for each in sequences]
        # Copied to the device once, not group by group.
        counts = torch.tensor(lengths, dtype=torch.long, device=device)
        sequence = torch.repeat_interleave(counts, output_size=sum(lengths))
        reference_states = section.reference_states if section.loss.uses_reference else None
        whole = cls(section.states, section.targets, reference_states, lengths, counts, sequence)
        order = [at for each in sequences for at in range(starts[each] + skip, starts[each + 1])]
        if order == list(range(starts[-1])):
            return whole
        index = torch.tensor(order, dtype=torch.long, device=device)
        return replace(
            whole,
            states=section.states[index],
            targets=section.targets[index],
            reference_states=None if reference_states is None else reference_states[index],
        )

    def __len__(self) -> int:
        """Return N."""
        return len(self.targets)

    def given(self, span: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return hidden states, targets and reference states of some positions."""
        reference = None if self.reference_states is None else self.reference_states[span]
        return self.states[span], self.targets[span], reference

    def sums(self, values: Tensor, sequences: slice, span: slice) -> Tensor:
        """Return the sum of the values of some positions over each of their sequences, [s] float32."""
        sums = torch.zeros(len(self.counts[sequences]), dtype=torch.float32, device=values.device)
        return sums.index_add_(0, self.sequence[span] - sequences.start, values)


def counted_rows(section: Section) -> list[list[int]]:
    """Return the sequences of each row that counts: its own, then its companions'.

    A row counts if none of its sequences is empty without what is skipped.
    """
    members = 1 + len(section.loss.companions)
    count = len(section.lengths) // members
    rows = [[row + member * count for member in range(members)] for row in range(count)]
    return [row for row in rows if all(section.lengths[each] > section.loss.skip for each in row)]
