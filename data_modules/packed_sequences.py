"""Tokenized sequences of large sets: kept in flat arrays, each made again when it is asked for."""

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import overload

from dipo_pl.batch import Encoded
from dipo_pl.data_modules.stored_rows import FEW


def packed(sequences: Iterable[Encoded]) -> Sequence[Encoded]:
    """Return sequences as a list if they are few, else as `PackedSequences`: 4 bytes a token, and 17 a sequence."""
    sequences = iter(sequences)
    first = list(islice(sequences, FEW))
    following = next(sequences, None)
    return first if following is None else PackedSequences(chain(first, (following,), sequences))


class PackedSequences(Sequence[Encoded]):
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

    @overload
    def __getitem__(self, place: int) -> Encoded: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Encoded]: ...

    def __getitem__(self, place: int | slice) -> Encoded | Sequence[Encoded]:
        """Return a sequence, or a list of some."""
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        index = range(len(self))[place]
        ids, flags = self.ids[self.ends[index] : self.ends[index + 1]], self.flags[index]
        return Encoded(
            tuple(ids), self.answer_starts[index], self.closings[index], bool(flags & 1), bool(flags & 2)
        )


class Groups(Sequence[Sequence[Encoded]]):
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

    @overload
    def __getitem__(self, place: int) -> Sequence[Encoded]: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Sequence[Encoded]]: ...

    def __getitem__(self, place: int | slice) -> Sequence[Encoded] | Sequence[Sequence[Encoded]]:
        """Return a group, or a list of some."""
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        start = range(len(self))[place] * self.size
        return self.sequences[start : start + self.size]
