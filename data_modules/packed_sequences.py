"""Tokenized sequences of large sets: kept in flat arrays, each made again when it is asked for."""

from array import array
from collections.abc import Iterable, Sequence

from dipo_pl.batch import Encoded
from dipo_pl.data_modules.large_sequence import LargeSequence, listed_if_few


def packed(sequences: Iterable[Encoded]) -> Sequence[Encoded]:
    """Return sequences as a list if they are few, else as `PackedSequences`: 4 bytes a token, and 17 a sequence."""
    return listed_if_few(sequences, PackedSequences)


class PackedSequences(LargeSequence[Encoded]):
    """Sequence of token ids and of what is known of each, in flat arrays.

    Args:
        sequences: the sequences.
    """

    def __init__(self, sequences: Iterable[Encoded]) -> None:
        self.ids = array("i")
        self.ends = array("q", [0])
        self.answer_starts = array("i")
        self.closings = array("i")
        # Bit 0: cut; bit 1: rewritten.
        self.flags = array("B")
        for each in sequences:
            self.ids.extend(each.ids)
            self.ends.append(len(self.ids))
            self.answer_starts.append(each.answer_start)
            self.closings.append(each.closing)
            self.flags.append(each.cut + 2 * each.rewritten)

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.flags)

    def item(self, index: int) -> Encoded:
        """Return a sequence."""
        ids, flags = self.ids[self.ends[index] : self.ends[index + 1]], self.flags[index]
        return Encoded(
            tuple(ids), self.answer_starts[index], self.closings[index], bool(flags & 1), bool(flags & 2)
        )


class Groups(LargeSequence[Sequence[Encoded]]):
    """Sequence of groups of the same number of sequences: the measured answers of each row.

    Args:
        sequences: of all groups, one group after another.
        size: sequences of a group.
    """

    def __init__(self, sequences: Sequence[Encoded], size: int) -> None:
        self.sequences = sequences
        self.size = size

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.sequences) // self.size

    def item(self, index: int) -> Sequence[Encoded]:
        """Return a group."""
        start = index * self.size
        return self.sequences[start : start + self.size]
