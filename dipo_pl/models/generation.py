"""Greedy generation from token prompts."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from dipo_pl.distributed import is_sharded

# Tokens generated before rows that have ended leave the batch.
STRETCH = 8
# Tokens that a cache has room for beyond those it holds.
ROOM = 64


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    cache_tokens: int = 16_384,
) -> list[str]:
    """Continues each prompt greedily with a KV cache until its end of turn, and decodes what is new.

    A row ends at the tokenizer's EOS, at any other end that the model's own generation config names (Llama-3
    ends a turn with <|eot_id|>), after `max_new_tokens` or where it reaches the model's context, but not
    before its first token; no row depends on which others are in its batch. Rows are taken in the order
    given: those that are likely to end together should stand together. Of a model in shards all ranks must call it
    together; each with its own prompts, and rows then end after their forward passes, not with them.

    Args:
        prompts: any number of them, at least one token each.
        cache_tokens: prompt and new tokens of the rows generated at a time, padding included; one row at least.
    """
    together = is_sharded(model)
    if not prompts and not together:
        return []
    stops = _stops(model, tokenizer)
    # In shards, a rank must not stop before the others: they would wait for it forever.
    greedy = GenerationConfig(
        do_sample=False,
        use_cache=True,
        eos_token_id=None if together else stops,
        pad_token_id=tokenizer.eos_token_id,
    )
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
    limits = [max(1, int(min(max_new_tokens, context - len(prompt)))) for prompt in prompts]
    training, own = model.training, model.generation_config
    model.eval()
    # generate() fills what is not set from the model's own (a repetition penalty, say), which must not count.
    model.generation_config = greedy
    new: list[list[int]] = []
    try:
        # What a shard's forward pass gathers in inference mode would be of no use to a later backward pass.
        with torch.no_grad() if together else torch.inference_mode():
            for batch in _batches(prompts, limits, cache_tokens):
                new += _continued(model, greedy, prompts[batch], limits[batch], stops)
            while together and (stretch := _agreed(model, None)):
                _idle(model, greedy, stretch)
    finally:
        model.train(training)
        model.generation_config = own
    return [text.strip(" ") for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def _stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ends = model.generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})


def _batches(prompts: Sequence[list[int]], limits: Sequence[int], cache_tokens: int) -> Iterator[slice]:
    if not prompts:
        return
    start = width = limit = 0
    for end, (prompt, own) in enumerate(zip(prompts, limits, strict=True)):
        width, limit = max(width, len(prompt)), max(limit, own)
        if end > start and (end + 1 - start) * (width + limit) > cache_tokens:
            yield slice(start, end)
            start, width, limit = end, len(prompt), own
    yield slice(start, len(prompts))


def _continued(
    model: PreTrainedModel,
    greedy: GenerationConfig,
    prompts: Sequence[list[int]],
    limits: Sequence[int],
    ends_of_turn: Sequence[int],
) -> list[list[int]]:
    """The new tokens of each row, its end included. Prompts are padded on the left."""
    device = model.get_input_embeddings().weight.device
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts], device=device)
    stops = torch.tensor(ends_of_turn, device=device)
    cache = _cache(model)
    new: list[list[int]] = [[] for _ in prompts]
    going, done = list(range(len(prompts))), 0
    while going:
        stretch = _agreed(model, min(STRETCH, *(limits[row] - done for row in going)))
        greedy.max_new_tokens = stretch
        ids = model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=greedy
        )
        done += stretch
        mask = torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], dim=1)
        tokens = ids[:, width:]
        # Up to a row's first stop; transformers fills the rest of a stretch with padding.
        ends = (torch.isin(tokens, stops).cumsum(1) == 0).sum(1).tolist()
        kept = []
        for place, (row, end, row_tokens) in enumerate(zip(going, ends, tokens.tolist(), strict=True)):
            new[row] = row_tokens[: end + 1]
            if end == len(row_tokens) and done < limits[row]:
                kept.append(place)
        if 0 < len(kept) < len(going):
            places = torch.tensor(kept, device=device)
            ids, mask = ids[places], mask[places]
            cache.reorder_cache(places)
        going = [going[place] for place in kept]
    return new


def _agreed(model: PreTrainedModel, stretch: int | None) -> int:
    """The tokens to generate now; of a model in shards the fewest that any rank asks for, 0 once none does."""
    if not is_sharded(model):
        return stretch or 0
    asked = torch.tensor(stretch or STRETCH + 1, device=model.get_input_embeddings().weight.device)
    dist.all_reduce(asked, dist.ReduceOp.MIN)
    return 0 if asked > STRETCH else int(asked)


def _idle(model: PreTrainedModel, greedy: GenerationConfig, stretch: int) -> None:
    """The forward passes of a stretch, for a rank whose rows have all ended."""
    greedy.max_new_tokens = stretch
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy)


def _cache(model: PreTrainedModel) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _RoomyLayer(DynamicLayer):
    """A DynamicLayer that writes into memory with room to spare.

    transformers' own copies all keys and values to new memory at every token, which is half the time of
    generating 48 rows with a Llama 384 wide on a CPU.
    """

    keys: Tensor
    values: Tensor
    room: list[Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if start == 0 or end > self.room[0].shape[-2]:
            wider = [_with_room(states, end + ROOM) for states in (key_states, value_states)]
            if start:
                wider[0][:, :, :start], wider[1][:, :, :start] = self.keys, self.values
            self.room = wider
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start:end] = states
        self._show(end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.room = [room.index_select(0, beam_idx) for room in self.room]
        self._show(self.get_seq_length())

    def _show(self, length: int) -> None:
        self.keys, self.values = (room[:, :, :length] for room in self.room)


def _with_room(states: Tensor, length: int) -> Tensor:
    return states.new_empty(*states.shape[:2], length, states.shape[-1])
