"""Key-value cache of generation that grows without copying itself for every token, and shrinks without copying the rest."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

# Tokens for which the cache reserves memory in advance.
RESERVE = 64


def key_value_cache(model: PreTrainedModel) -> DynamicCache:
    """Return an empty cache for a model, whose layers of the usual kind reserve memory."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_ReservingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def attends_to_all(cache: DynamicCache) -> bool:
    """Return whether every layer keeps all tokens, and has neither a window nor a state that goes from token to token."""
    return bool(cache.layers) and all(isinstance(layer, _ReservingLayer) for layer in cache.layers)


def keep_rows(cache: DynamicCache, rows: Sequence[int]) -> list[int]:
    """Keep some rows of the batch, in an order that moves few of them: return which row each place then has.

    Args:
        cache: not empty.
        rows: places of the rows to keep, increasing.
    """
    count = len(rows)
    # The last rows fill the places of those that leave.
    free = sorted(set(range(count)) - set(rows))
    moved = [row for row in rows if row >= count]
    order = list(range(count))
    for place, row in zip(free, moved, strict=True):
        order[place] = row
    for layer in cache.layers:
        if isinstance(layer, _ReservingLayer):
            layer.move_rows(free, moved, count)
        elif count:
            layer.reorder_cache(torch.tensor(order))
    return order


class _ReservingLayer(DynamicLayer):
    """Cache layer that reserves memory in advance.

    DynamicLayer copies all keys and values to new memory for every token, which took half the time of generating
    48 rows with a Llama of hidden size 384 on a CPU.
    """

    keys: Tensor
    values: Tensor
    reserved: list[Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if start == 0 or end > self.reserved[0].shape[-2]:
            wider = [_empty(states, end + RESERVE) for states in (key_states, value_states)]
            if start:
                wider[0][:, :, :start], wider[1][:, :, :start] = self.keys, self.values
            self.reserved = wider
        for memory, states in zip(self.reserved, (key_states, value_states), strict=True):
            memory[:, :, start:end] = states
        self._expose(end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.reserved = [memory.index_select(0, beam_idx) for memory in self.reserved]
        self._expose(self.get_seq_length())

    def move_rows(self, places: list[int], rows: list[int], count: int) -> None:
        """Put rows in the places of others, and keep the first `count` of all."""
        length = self.get_seq_length()
        for memory in self.reserved:
            if places:
                memory[places, :, :length] = memory[rows, :, :length]
        self.reserved = [memory[:count] for memory in self.reserved]
        self._expose(length)

    def _expose(self, length: int) -> None:
        self.keys, self.values = (memory[:, :, :length] for memory in self.reserved)


def _empty(states: Tensor, length: int) -> Tensor:
    """Return uninitialized keys or values of another length."""
    return states.new_empty(*states.shape[:2], length, states.shape[-1])
