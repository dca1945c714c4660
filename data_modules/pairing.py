"""Pairs of forget and retain rows, and batches of them, as pure functions of seed, epoch and row."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import Sampler


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
            ones cannot be shared out evenly, items from the epoch's start fill them.
        world_size: number of processes.
        accumulation: batches of one rank that make an optimizer step. Where it is given, nothing is filled: a rank
            may have an item less, and `weight` is the factor on its loss; a rank without any item takes the
            epoch's first with weight 0.
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
        if self.accumulation is None:
            missing = -len(items) % self.world_size
            items += (items * missing)[:missing]
        together = self.batch_size * self.world_size
        for start in range(self.first_batch * together, len(items), together):
            batch = items[start : start + together]
            yield batch[self._share(len(batch))] or items[:1]

    def _share(self, count: int) -> slice:
        """Return this rank's part of that many items."""
        return slice(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def weight(self, batch: int, batches: int | None = None) -> float:
        r"""Return the factor on the loss of an epoch's batch.

            own items * world size * accumulation / items of the step

        With it, the trainer's mean over ranks and `accumulation` batches is the mean over the step's items.

        Args:
            batch: number of the batch in its epoch.
            batches: of an epoch, where some are left out.
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
