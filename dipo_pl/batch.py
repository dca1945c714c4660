"""What travels from the data modules to the policy: padded tokens and the places that are predicted."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """One tokenised sequence; tokens from `answer_start` on are to be predicted.

    A first token has nothing before it to be predicted from, so `answer_start` is at least 1.
    `closing` counts the tokens at the end that close the answer (EOS, the end of a turn) and hold nothing of it.
    `cut` tells that the sequence went on, beyond the greatest length allowed.
    """

    ids: tuple[int, ...]
    answer_start: int
    closing: int = 0
    cut: bool = False

    @property
    def answer_length(self) -> int:
        return len(self.ids) - self.answer_start


@dataclass
class Batch:
    """Right-padded sequences, in sections that follow each other (forget rows, then retain rows).

    Attributes:
        input_ids: [B, T] token ids; padding is id 0 and never attended to.
        attention_mask: [B, T] bool, built from lengths (a pad id may equal EOS, so it is never inferred).
        positions: [N] indices into the flattened [B * T] of the positions that predict an answer token.
        targets: [N] the answer token that each of these positions predicts.
        lengths: answer tokens of each sequence; they sum to N.
        sections: number of sequences in each named section, in order.
        rows: each sequence's place among all sequences of its section, by which stored states are found.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    targets: Tensor
    lengths: tuple[int, ...]
    sections: dict[str, int]
    rows: tuple[int, ...]

    def to(self, device: torch.device) -> Self:
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            positions=self.positions.to(device),
            targets=self.targets.to(device),
        )

    def only(self, names: Collection[str]) -> "Batch":
        """The same with these sections alone, in the same order."""
        if set(names) == set(self.sections):
            return self
        chosen = [name in names for name, count in self.sections.items() for _ in range(count)]
        kept = [index for index, keep in enumerate(chosen) if keep]
        place = torch.full((len(chosen),), -1, dtype=torch.long)
        place[kept] = torch.arange(len(kept))
        device, width = self.positions.device, self.input_ids.shape[1]
        spans = [tokens for name, (_, tokens) in self.section_slices().items() if name in names]
        positions, targets = (
            torch.cat([each[:0], *(each[span] for span in spans)]) for each in (self.positions, self.targets)
        )
        return Batch(
            input_ids=self.input_ids[kept],
            attention_mask=self.attention_mask[kept],
            positions=place.to(device)[positions // width] * width + positions % width,
            targets=targets,
            lengths=tuple(self.lengths[index] for index in kept),
            sections={name: count for name, count in self.sections.items() if name in names},
            rows=tuple(self.rows[index] for index in kept),
        )

    def section_slices(self) -> dict[str, tuple[slice, slice]]:
        """For each section, its slice of the sequences and its slice of the N answer positions."""
        slices = {}
        row = token = 0
        for name, count in self.sections.items():
            tokens = sum(self.lengths[row : row + count])
            slices[name] = (slice(row, row + count), slice(token, token + tokens))
            row, token = row + count, token + tokens
        return slices


def collate(sections: dict[str, Sequence[Encoded]], rows: Sequence[int]) -> Batch:
    """Pads the sequences of all sections to the longest one and marks the positions that predict answers."""
    sequences = [sequence for section in sections.values() for sequence in section]
    width = max(len(sequence.ids) for sequence in sequences)
    input_ids = torch.zeros(len(sequences), width, dtype=torch.long)
    attention_mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    positions: list[int] = []
    targets: list[int] = []
    for index, sequence in enumerate(sequences):
        length = len(sequence.ids)
        input_ids[index, :length] = torch.tensor(sequence.ids)
        attention_mask[index, :length] = True
        # The position before a token predicts it: this is the only place where the shift is made.
        positions.extend(range(index * width + sequence.answer_start - 1, index * width + length - 1))
        targets.extend(sequence.ids[sequence.answer_start :])
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        positions=torch.tensor(positions, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        lengths=tuple(sequence.answer_length for sequence in sequences),
        sections={name: len(section) for name, section in sections.items()},
        rows=tuple(rows),
    )


@dataclass
class EvaluationBatch:
    """Rows of one evaluation set with all their answers, and the prompts to generate from.

    Attributes:
        answers: every answer of every row, row by row: the original, the correct one for the truth
            ratio, then the wrong ones.
        rows: [R] index of each row in its set.
        prompts: token ids up to the answer, one list a row.
        closing: tokens that close each row's original answer.
    """

    answers: Batch
    rows: Tensor
    prompts: list[list[int]]
    closing: tuple[int, ...]

    @property
    def originals(self) -> range:
        """The places of the rows' original answers among all answers."""
        count = len(self.answers.lengths)
        return range(0, count, count // len(self.rows))

    def to(self, device: torch.device) -> Self:
        return replace(self, answers=self.answers.to(device), rows=self.rows.to(device))
