"""Sequences of large sets, whose items are not objects in memory: each is made again when it is asked for."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import TypeVar, overload

Item = TypeVar("Item")

# So many items are a list. More are made compact so many at a time.
FEW = 4096


def listed_if_few(
    items: Iterable[Item], compact: Callable[[Iterable[Item]], Sequence[Item]]
) -> Sequence[Item]:
    """Return items as a list if they are few, else as `compact` makes of them."""
    items = iter(items)
    first = list(islice(items, FEW))
    following = next(items, None)
    return first if following is None else compact(chain(first, (following,), items))


class LargeSequence(Sequence[Item]):
    """Base of sequences that make an item, or a part of themselves, when it is asked for."""

    @abstractmethod
    def item(self, index: int) -> Item:
        """Make an item, of an index from 0 to the length."""

    def part(self, places: range) -> Sequence[Item]:
        """Make the items of some indices."""
        return [self.item(each) for each in places]

    @overload
    def __getitem__(self, place: int) -> Item: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Item]: ...

    def __getitem__(self, place: int | slice) -> Item | Sequence[Item]:
        """Return an item, or some; IndexError if there is no such item."""
        found = range(len(self))[place]
        return self.part(found) if isinstance(found, range) else self.item(found)
