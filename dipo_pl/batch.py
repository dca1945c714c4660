"""Batches that data modules give to the policy: padded tokens, and the positions that predict answer tokens."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """Tokenized sequence, of which the tokens from `answer_start` on are to be predicted.

    Attributes:
        ids: token ids of prompt and answer.
        answer_start: at least 1, since nothing precedes the first token to predict it from.
        closing: tokens at the end that close the answer (EOS, the end of a turn) and hold no part of it.
        cut: whether the text went on beyond the greatest length allowed.
        rewritten: whether the prompt format writes the answer otherwise than the row has it, spaces aside.
    """

    ids: tuple[int, ...]
    answer_start: int
    closing: int = 0
    cut: bool = False
    rewritten: bool = False

    @property
    def answer_length(self) -> int:
        """Number of tokens to be predicted."""
        return len(self.ids) - self.answer_start


# Not frozen: Lightning's precision plugins copy batches with all that is in them.
@dataclass
class BatchSection:
    """Consecutive sequences of a batch that one loss is computed on: rows, then each of their companions.

    Attributes:
        rows: for each kind of sequence (`forget`, `alternate`), the index of each sequence among all of its kind.
            Kinds follow each other; after the first one, each gives every row a companion, in the order of the rows.
        lengths: answer tokens of each sequence.
    """

    rows: Mapping[str, tuple[int, ...]]
    lengths: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of rows, each counted once with its companions."""
        return len(self.lengths) // len(self.rows)

    @property
    def by_kind(self) -> dict[str, tuple[int, ...]]:
        """The lengths of the sequences of each kind."""
        lengths = iter(self.lengths)
        return {kind: tuple(islice(lengths, len(rows))) for kind, rows in self.rows.items()}

    def of_kinds(self, kinds: Collection[str]) -> Self:
        """Return the section with these kinds of sequences alone."""
        lengths = self.by_kind
        rows = {kind: rows for kind, rows in self.rows.items() if kind in kinds}
        return replace(self, rows=rows, lengths=tuple(chain.from_iterable(lengths[kind] for kind in rows)))


@dataclass
class Batch:
    """Right-padded sequences for one forward pass, in sections that follow each other.

    Attributes:
        input_ids: [B, T] token ids; padding is id 0 and never attended to.
        attention_mask: [B, T] bool, built from lengths: a pad id may equal EOS, so it is never inferred from ids.
        positions: [N] indices into the flattened [B * T] of the positions that predict an answer token.
        targets: [N] the answer token that each of these positions predicts.
        sections: by name (`forget`, `retain`).
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    targets: Tensor
    sections: dict[str, BatchSection]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Answer tokens of each sequence; they sum to N."""
        return tuple(chain.from_iterable(section.lengths for section in self.sections.values()))

    @property
    def rows(self) -> dict[str, tuple[int, ...]]:
        """Index of each sequence among all of its kind, by kind."""
        return {kind: rows for section in self.sections.values() for kind, rows in section.rows.items()}

    def to(self, device: torch.device) -> Self:
        """Return the batch with its tensors on a device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            positions=self.positions.to(device),
            targets=self.targets.to(device),
        )

    def by_section(self, values: Tensor) -> dict[str, Tensor]:
        """Split the values of all answer positions, [N, ...], into those of each section."""
        counts = [sum(section.lengths) for section in self.sections.values()]
        return dict(zip(self.sections, values.split(counts), strict=True))

    def by_kind(self, values: Tensor) -> dict[str, Tensor]:
        """Split the values of all answer positions, [N, ...], into those of each kind of sequences."""
        counts = [sum(lengths) for section in self.sections.values() for lengths in section.by_kind.values()]
        return dict(zip(self.rows, values.split(counts), strict=True))

    def only(self, names: Collection[str]) -> "Batch":
        """Return the batch of these sections alone, in the same order and as wide as before."""
        return self.of_kinds({kind for name in names for kind in self.sections[name].rows})

    def of_kinds(self, kinds: Collection[str]) -> "Batch":
        """Return the batch of these kinds of sequences alone, in the same order and as wide as before."""
        if set(kinds) == set(self.rows):
            return self
        positions, targets = self.by_kind(self.positions), self.by_kind(self.targets)
        width = self.input_ids.shape[1]
        kept: list[int] = []
        moved = []
        first = 0
        for section in self.sections.values():
            for kind, rows in section.rows.items():
                if kind in kinds:
                    moved.append(positions[kind] - (first - len(kept)) * width)
                    kept += range(first, first + len(rows))
                first += len(rows)
        sections = {name: section.of_kinds(kinds) for name, section in self.sections.items()}
        return Batch(
            input_ids=self.input_ids[kept],
            attention_mask=self.attention_mask[kept],
            positions=torch.cat(moved),
            targets=torch.cat([each for kind, each in targets.items() if kind in kinds]),
            sections={name: section for name, section in sections.items() if section.rows},
        )


def collate(
    sequences: Mapping[str, Sequence[Encoded]],
    rows: Sequence[int],
    sections: Mapping[str, Sequence[str]] | None = None,
) -> Batch:
    """Pad sequences to the longest one and find the positions that predict their answers.

    Args:
        sequences: by kind.
        rows: for each of them, its index among all sequences of its kind.
        sections: kinds of each section, in the order of `sequences`; None makes a section of each kind.
    """
    every = list(chain.from_iterable(sequences.values()))
    width = max(len(sequence.ids) for sequence in every)
    input_ids = torch.zeros(len(every), width, dtype=torch.long)
    attention_mask = torch.zeros(len(every), width, dtype=torch.bool)
    positions: list[int] = []
    targets: list[int] = []
    for index, sequence in enumerate(every):
        length = len(sequence.ids)
        input_ids[index, :length] = torch.tensor(sequence.ids)
        attention_mask[index, :length] = True
        # The position before a token predicts it: this is the only place where the shift is made.
        positions.extend(range(index * width + sequence.answer_start - 1, index * width + length - 1))
        targets.extend(sequence.ids[sequence.answer_start :])
    remaining = iter(rows)
    rows_of = {kind: tuple(next(remaining) for _ in some) for kind, some in sequences.items()}
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        positions=torch.tensor(positions, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        sections={
            name: BatchSection(
                {kind: rows_of[kind] for kind in kinds},
                tuple(sequence.answer_length for kind in kinds for sequence in sequences[kind]),
            )
            for name, kinds in (sections or {kind: (kind,) for kind in sequences}).items()
        },
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
        """Indices of the rows' original answers among all answers."""
        count = len(self.answers.lengths)
        return range(0, count, count // len(self.rows))

    def to(self, device: torch.device) -> Self:
        """Return the batch with its tensors on a device."""
        return replace(self, answers=self.answers.to(device), rows=self.rows.to(device))
