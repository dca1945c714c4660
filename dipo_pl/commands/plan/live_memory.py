"""Count of the bytes that tensors hold, operation by operation; the tensors may be fake ones without contents."""

import tracemalloc
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dipo_pl.private_names import CAST, GROUPED_PRODUCT, TorchDispatchMode, storage_key, tree_iter

COPY = torch.ops.aten.clone.default


class LiveMemory(TorchDispatchMode):
    """Dispatch mode that counts each storage from the operation that returns it until nothing refers to it.

    Workspaces of kernels and memory that an allocator caches are not counted.

    Args:
        shards: number of ranks over which `sharded` tensors are divided.
        numpy: also count memory of NumPy, by tracemalloc.

    Attributes:
        live: bytes held now.
        peak: most bytes held since `restart`.
        weights: storages that are sharded, and whose copies in another dtype are counted in `casts`.
    """

    def __init__(self, shards: int = 1, numpy: bool = False) -> None:
        super().__init__()
        self.shards = shards
        self.numpy = numpy
        self.live = self.peak = 0.0
        self.weights: set[int] = set()
        self._held: dict[int, float] = {}
        self._casts: dict[int, int] = {}

    @property
    def casts(self) -> int:
        """Bytes of `live` in copies of `weights` in another dtype, which autocast makes."""
        return sum(self._casts.values())

    def hold(self, tensors: Iterable[Tensor], sharded: bool = False) -> float:
        """Count tensors that were made elsewhere, or recount them as sharded.

        Returns:
            This rank's bytes, each storage once.
        """
        held = 0.0
        for storage in storages(tensors):
            key, share = storage_key(storage), storage.nbytes() / (self.shards if sharded else 1)
            self._add(storage)
            if key in self._held:
                self.live += share - self._held[key]
                self._held[key] = share
            held += share
        self.peak = max(self.peak, self.live)
        return held

    def restart(self) -> float:
        """Set `peak` to `live` and return it."""
        self.peak = self.live
        return self.live

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is GROUPED_PRODUCT:
            result = _grouped_product(*args, **(kwargs or {}))
        else:
            result = function(*args, **(kwargs or {}))
        if function is CAST and storage_key(args[0]) in self.weights:
            self._casts[storage_key(result)] = result.untyped_storage().nbytes()
        for each in tree_iter(result):
            if isinstance(each, Tensor):
                self._add(each.untyped_storage())
        if function is COPY and storage_key(args[0]) in self.weights:
            # A copy of a shard.
            self.hold([result], sharded=True)
        numpy_bytes = 0
        if self.numpy:
            numpy_bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.reset_peak()
        self.peak = max(self.peak, self.live + numpy_bytes)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage_key(storage), storage.nbytes()
        if key in self._held or not size:
            return
        self._held[key] = size
        self.live += size
        weakref.finalize(storage, self._drop, key).atexit = False

    def _drop(self, key: int) -> None:
        self.live -= self._held.pop(key)
        self.weights.discard(key)
        self._casts.pop(key, None)


def _grouped_product(a: Tensor, b: Tensor, offs: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """Return an empty tensor of the shape of the product of each group of rows of `a` with its own matrix of `b`."""
    if a.ndim == b.ndim == 2:
        # The gradient of the matrices: one for each group.
        assert offs is not None
        return a.new_empty(len(offs), a.shape[0], b.shape[1])
    rows = a.shape[0] if a.ndim == 2 or b.ndim == 3 else a.shape[1]
    if a.ndim == b.ndim == 3:
        return a.new_empty(rows, a.shape[1], b.shape[2])
    return a.new_empty(rows, b.shape[-1])


def storages(tensors: Iterable[Tensor]) -> list[torch.UntypedStorage]:
    """Return the storages of tensors, each once."""
    return list({storage_key(each): each.untyped_storage() for each in tensors}.values())


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages of tensors, each once."""
    return sum(each.nbytes() for each in storages(tensors))
