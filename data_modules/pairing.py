"""Which retain row meets which forget row: pure functions of seed, epoch and row."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import Sampler


def permutation(seed: int, stream: str, cycle: int, size: int) -> list[int]:
    """A shuffled range(size) that depends on its arguments alone (not on workers, ranks or earlier draws)."""
    order = list(range(size))
    random.Random(f"{seed}/{stream}/{cycle}").shuffle(order)
    return order


def forget_retain_pairs(seed: int, epoch: int, forget_rows: int, retain_rows: int) -> list[tuple[int, int]]:
    """The epoch's (forget row, retain row) pairs, in training order.

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
    """Yields an epoch's batches of items, from any batch on.

    Args:
        items: the epoch's items in global order.
        batch_size: items of one batch on one device.
        rank, world_size: world_size consecutive batches are taken at once, one a rank. Where the last
            ones cannot be shared out evenly, items from the epoch's start fill them.
        accumulation: batches of one rank that make an optimizer step. Given, nothing is filled: a rank may
            have an item less, and `weight` says what its batch counts; one without any takes the epoch's first for
            nothing.
    """

    def __init__(
        self,
        items: Callable[[int], Sequence[Any]],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int | None = None,
    ) -> None:
        self.items = items
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.accumulation = accumulation
        self.epoch = 0
        self.first_batch = 0
        # The same in every epoch, and pairs take a while to make.
        self._size = len(items(0))

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this at every epoch; also for the epoch that a resumed run is in the middle of."""
        if epoch != self.epoch:
            self.epoch, self.first_batch = epoch, 0

    def resume(self, epoch: int, batches_done: int) -> None:
        finished = batches_done >= len(self)
        self.epoch, self.first_batch = (epoch + 1, 0) if finished else (epoch, batches_done)

    def __len__(self) -> int:
        return -(-self._size // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Sequence[Any]]:
        items = list(self.items(self.epoch))
        if self.accumulation is None:
            missing = -len(items) % self.world_size
            items += (items * missing)[:missing]
        together = self.batch_size * self.world_size
        for start in range(self.first_batch * together, len(items), together):
            batch = items[start : start + together]
            yield batch[self._share(len(batch))] or items[:1]

    def _share(self, count: int) -> slice:
        """This rank's of that many items."""
        return slice(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def weight(self, batch: int, batches: int | None = None) -> float:
        r"""What the loss of an epoch's batch counts.

            own items * ranks * accumulation / items of the step

        Args:
            batches: of an epoch, where some are left out.

        So the mean over ranks and `accumulation` batches, which the trainer takes, is that over the step's items.
        """
        if self.accumulation is None:
            return 1.0
        together = self.batch_size * self.world_size
        size = min(self._size, (len(self) if batches is None else batches) * together)
        step = together * self.accumulation
        in_step = min(step, size - batch // self.accumulation * step)
        own = self._share(min(together, size - batch * together))
        weight: float = (own.stop - own.start) * self.world_size * self.accumulation / in_step
        return weight
