"""Bytes that tensors hold, counted operation by operation, though nothing of them is there."""

import tracemalloc
import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from dipo_pl.private_names import CAST, TorchDispatchMode, storage_key, tree_iter


class LiveMemory(TorchDispatchMode):
    """Follows every storage that an operation returns until nothing refers to it any more.

    What kernels use within themselves is not seen, nor what an allocator keeps of freed memory.

    Args:
        shards: ranks that share what is said to be `sharded`: it counts for its share.
        numpy: count what NumPy holds meanwhile as well (tracemalloc sees it).

    Attributes:
        live, peak: bytes now, and at most since `restart`.
        casts: of `live`, copies in another dtype of what `weights` names: those that autocast makes.
    """

    def __init__(self, shards: int = 1, numpy: bool = False) -> None:
        super().__init__()
        self.shards = shards
        self.numpy = numpy
        self.live = self.peak = 0.0
        self._held: dict[int, float] = {}
        self.weights: set[int] = set()
        self._casts: dict[int, int] = {}

    @property
    def casts(self) -> int:
        return sum(self._casts.values())

    def hold(self, tensors: Iterable[Tensor], sharded: bool = False) -> float:
        """Counts tensors made elsewhere, or counts them anew as `sharded`; returns their bytes, each storage once."""
        total = 0.0
        seen = set()
        for each in tensors:
            key, size = storage_key(each), each.untyped_storage().nbytes()
            if key in seen:
                continue
            seen.add(key)
            self._add(each)
            share = size / (self.shards if sharded else 1)
            self.live += share - self._held[key]
            self._held[key] = share
            total += size
        self.peak = max(self.peak, self.live)
        return total

    def restart(self) -> float:
        """Forgets the peak; returns what is live."""
        self.peak = self.live
        return self.live

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is CAST and storage_key(args[0]) in self.weights:
            self._casts[storage_key(result)] = result.untyped_storage().nbytes()
        for each in tree_iter(result):
            if isinstance(each, Tensor):
                self._add(each)
        beside = 0
        if self.numpy:
            beside = tracemalloc.get_traced_memory()[1]
            tracemalloc.reset_peak()
        self.peak = max(self.peak, self.live + beside)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage_key(tensor), storage.nbytes()
        if key in self._held or not size:
            return
        self._held[key] = size
        self.live += size
        weakref.finalize(storage, self._drop, key).atexit = False

    def _drop(self, key: int) -> None:
        self.live -= self._held.pop(key)
        self.weights.discard(key)
        self._casts.pop(key, None)
