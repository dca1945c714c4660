"""Training batches: which sequences an epoch pairs, in which order, and the batches made of them."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch.utils.data import Dataset, Sampler

from dipo_pl.batch import Batch, Encoded, collate
from dipo_pl.errors import InputError


def permutation(seed: int, stream: str, cycle: int, size: int) -> list[int]:
    """Return a shuffled range(size) that depends on the arguments only, not on workers, ranks or earlier draws."""
    order = list(range(size))
    random.Random(f"{seed}/{stream}/{cycle}").shuffle(order)
    return order


def forget_retain_pairs(seed: int, epoch: int, forget_rows: int, retain_rows: int) -> list[tuple[int, int]]:
    """Return the epoch's (forget row, retain row) pairs, in training order.

    One epoch passes once over the forget set. Retain rows are dealt from one shuffled pack after another
    without replacement, so each is seen before any is seen twice; forget row f of epoch e takes card
    e * forget_rows + f.
    """
    cards = range(epoch * forget_rows, (epoch + 1) * forget_rows)
    packs = {
        cycle: permutation(seed, "retain", cycle, retain_rows)
        for cycle in range(cards[0] // retain_rows, cards[-1] // retain_rows + 1)
    }
    partner = [packs[card // retain_rows][card % retain_rows] for card in cards]
    return [(row, partner[row]) for row in permutation(seed, "forget", epoch, forget_rows)]


class ResumableSampler(Sampler[Sequence[Any]]):
    """Sampler that yields an epoch's batches of items, starting at any batch.

    Args:
        items: the epoch's items in global order.
        batch_size: items of one batch on one rank.
        rank: this process's; `world_size` consecutive batches are taken at once, one by each rank. Where the last
            ones cannot be shared out evenly, a rank has an item less, and one without any takes the epoch's first;
            `weight` is the factor on its loss, 0 for the latter.
        world_size: number of processes.
    """

    def __init__(
        self,
        items: Callable[[int], Sequence[Any]],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.items = items
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0
        # The same in every epoch, and pairs take a while to make.
        self._size = len(items(0))

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; Lightning calls this also for the epoch in which a resumed run goes on."""
        if epoch != self.epoch:
            self.epoch, self.first_batch = epoch, 0

    def resume(self, epoch: int, batches_done: int) -> None:
        """Go on in an epoch after some batches, or with the next epoch after all of them."""
        finished = batches_done >= len(self)
        self.epoch, self.first_batch = (epoch + 1, 0) if finished else (epoch, batches_done)

    def __len__(self) -> int:
        """Return the number of an epoch's batches on one rank."""
        return -(-self._size // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Sequence[Any]]:
        items = list(self.items(self.epoch))
        together = self.batch_size * self.world_size
        for start in range(self.first_batch * together, len(items), together):
            batch = items[start : start + together]
            yield batch[self._share(len(batch))] or items[:1]

    def _share(self, count: int) -> slice:
        """Return this rank's part of that many items."""
        return slice(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def weight(self, batch: int, accumulation: int = 1, batches: int | None = None) -> float:
        r"""Return the factor on the loss of an epoch's batch.

            own items * world size * accumulation / items of the step

        With it, the trainer's mean over ranks and `accumulation` batches is the mean over the step's items, also where the
        epoch ends before a step is full.

        Args:
            batch: number of the batch in its epoch.
            accumulation: batches of one rank that make an optimizer step.
            batches: of an epoch, where some are left out.
        """
        together = self.batch_size * self.world_size
        size = min(self._size, (len(self) if batches is None else batches) * together)
        step = together * accumulation
        in_step = min(step, size - batch // accumulation * step)
        own = self._share(min(together, size - batch * together))
        weight: float = (own.stop - own.start) * self.world_size * accumulation / in_step
        return weight


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

    pairs = forget_retain_pairs(seed, epoch, forget, retain)
    return [tuple(place(kind, *pair) for kind in kinds) for pair in pairs]


def row_items(counts: Mapping[str, int], seed: int, epoch: int) -> list[Item]:
    """Return all rows of the sets in `counts`, shuffled for the epoch."""
    rows = [(name, row) for name, count in counts.items() for row in range(count)]
    return [(rows[place],) for place in permutation(seed, "train", epoch, len(rows))]


class TrainingBatches(Dataset[Batch]):
    """Data set whose index is a list of items, and whose values are batches of sequences in sections of some kinds."""

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
        columns = zip(kinds, zip(*items, strict=True), strict=True)
        return {kind: [self.sequences[name][row] for name, row in column] for kind, column in columns}


T = TypeVar("T")

# 8 pairs of TOFU a batch: 18 % padding (36 % ungrouped, 20 % with 8, 15 % over the whole epoch, where batches repeat).
WINDOW = 16


def grouped_by_length(
    items: Sequence[T], length: Callable[[T], int], batch_size: int, seed: int, epoch: int
) -> list[T]:
    """Return the epoch's items in an order in which every `batch_size` of them are of similar length.

    Windows of `WINDOW` batches are sorted and cut into batches, then the batches of the epoch are
    shuffled. An incomplete batch stays at the end. The order depends on the arguments only.

    Args:
        items: in random order.
        length: tokens of an item's longest sequence, to which a batch pads all the others.
        batch_size: items of a global batch.
        seed: of the order of batches.
        epoch: counted from 0.
    """
    count = len(items) // batch_size
    whole = items[: count * batch_size]
    ordered: list[T] = []
    for start in range(0, len(whole), WINDOW * batch_size):
        ordered += sorted(whole[start : start + WINDOW * batch_size], key=length)
    order = permutation(seed, "batches", epoch, count)
    shuffled = [item for batch in order for item in ordered[batch * batch_size : (batch + 1) * batch_size]]
    return [*shuffled, *items[len(whole) :]]


def accumulated_batches(global_batch_size: int, batch_size: int, ranks: int, given: int = 1) -> int:
    """Return how many batches of `batch_size` rows of each rank make an optimizer step of `global_batch_size` rows.

    `given` is trainer.accumulate_grad_batches as it was set; 1 where it was not.

    Raises:
        InputError: the ranks cannot take exactly this many rows, or another accumulation is asked for.
    """
    accumulation, rest = divmod(global_batch_size, batch_size * ranks)
    if rest or not accumulation:
        fitting = [each for each in range(1, batch_size + 1) if global_batch_size % (each * ranks) == 0]
        advice = f"a data.batch_size of {fitting[-1]}" if fitting else f"a multiple of {ranks}"
        raise InputError(
            f"data.global_batch_size is {global_batch_size}, and {ranks} device{'s' * (ranks > 1)} with "
            f"data.batch_size {batch_size} take {batch_size * ranks} rows at once, which does not divide it: "
            f"{advice} does"
        )
    if given not in (1, accumulation):
        raise InputError(
            f"data.global_batch_size {global_batch_size} and trainer.accumulate_grad_batches {given} both say how "
            "many batches are accumulated: leave the second at 1"
        )
    return accumulation
