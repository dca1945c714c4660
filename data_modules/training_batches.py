"""Training batches: which sequences an epoch pairs, in which order, and the batches made of them."""

from collections.abc import Mapping, Sequence

from torch.utils.data import Dataset

from dipo_pl.batch import Batch, Encoded, collate
from dipo_pl.data_modules.pairing import forget_retain_pairs, permutation

# For each kind of sequence in a batch, the set that a sequence comes from and its index there.
Item = tuple[tuple[str, int], ...]


def pair_items(kinds: Sequence[str], counts: Mapping[str, int], seed: int, epoch: int) -> list[Item]:
    """Return an epoch's pairs of a forget row with its companions and a retain row, in training order.

    Args:
        kinds: of sequences, in the order of a batch.
        counts: sequences of each kind. A companion has K of them for each forget row; epoch e takes number e mod K.
        seed: of pairing and order.
        epoch: counted from 0.
    """
    forget, retain = counts["forget"], counts["retain"]

    def place(kind: str, row: int, partner: int) -> tuple[str, int]:
        if kind == "retain":
            return kind, partner
        answers = counts[kind] // forget
        return kind, row * answers + epoch % answers

    return [
        tuple(place(kind, *pair) for kind in kinds)
        for pair in forget_retain_pairs(seed, epoch, forget, retain)
    ]


def row_items(counts: Mapping[str, int], seed: int, epoch: int) -> list[Item]:
    """Return all rows of the sets in `counts`, shuffled for the epoch."""
    rows = [(name, row) for name, count in counts.items() for row in range(count)]
    return [(rows[place],) for place in permutation(seed, "train", epoch, len(rows))]


class TrainingBatches(Dataset[Batch]):
    """Data set whose index is a list of items, and whose values are whole batches.

    Args:
        sequences: by set.
        sections: kinds of sequences in each section of a batch.
    """

    def __init__(
        self, sequences: Mapping[str, Sequence[Encoded]], sections: Mapping[str, Sequence[str]]
    ) -> None:
        self.sequences = sequences
        self.sections = sections

    def __getitem__(self, items: Sequence[Item]) -> Batch:
        """Return the batch of some items."""
        columns = list(zip(*items, strict=True))
        return collate(self.chosen(items), [row for column in columns for _, row in column], self.sections)

    def chosen(self, items: Sequence[Item]) -> dict[str, list[Encoded]]:
        """Return the sequences of some items, by kind."""
        kinds = [kind for kinds in self.sections.values() for kind in kinds]
        columns = zip(*items, strict=True)
        return {
            kind: [self.sequences[name][row] for name, row in column]
            for kind, column in zip(kinds, columns, strict=True)
        }
