"""Greedy generation from tokenized prompts, in batches where these give what transformers gives for each prompt alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from dipo_pl.distributed import is_sharded
from dipo_pl.errors import InputError, short_message
from dipo_pl.models.eval_mode import eval_mode

# Tokens generated at a time; then finished rows leave the batch.
BURST = 8
# Tokens for which the key-value cache reserves memory in advance.
RESERVE = 64
# Largest difference of logits of the trial, as a share of the largest logit, in float32 and in half precision.
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.2

_batches_correctly: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    cache_tokens: int = 16_384,
    ended: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Return greedy completions of prompts, without special tokens.

    A completion ends at the EOS token of the tokenizer, at any other EOS token of the model's generation config
    (Llama-3 ends a turn with <|eot_id|>), after `max_new_tokens` tokens or at the end of the model's context; it has
    at least one token and does not depend on the other prompts of its batch. Batches are formed in the given order,
    so prompts whose completions have similar lengths should be adjacent. If the model is sharded, all ranks must call
    this function together, each with its own prompts.

    The first call of a model tries a padded batch against single prompts. Where they differ (recurrent models, encoders
    as decoders, caches of another kind), prompts are completed one at a time by transformers' own `generate`.

    Args:
        model: a causal language model.
        tokenizer: decodes the completions.
        prompts: tokens of each prompt, at least one.
        max_new_tokens: longest completion.
        cache_tokens: largest number of tokens in a batch, prompts, completions and padding; a batch has at least
            one row.
        ended: called with the number of completions that have ended since the last call.

    Returns:
        A text for each prompt.

    Raises:
        InputError: the model cannot generate, or not in batches and is sharded.
    """
    sharded = is_sharded(model)
    if not prompts and not sharded:
        return []
    stops = _stop_tokens(model, tokenizer)
    # With a sharded model no rank may stop before the others, which would wait for it forever.
    greedy = GenerationConfig(
        do_sample=False,
        use_cache=True,
        eos_token_id=None if sharded else stops,
        pad_token_id=tokenizer.eos_token_id,
    )
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
    limits = [max(1, int(min(max_new_tokens, context - len(prompt)))) for prompt in prompts]
    own = model.generation_config
    # generate() takes unset options from the model's own config, for example a repetition penalty.
    model.generation_config = greedy
    new: list[list[int]] = []
    try:
        # Weights that a sharded model gathers in inference mode could not be used in a later backward pass.
        with eval_mode(model), torch.no_grad() if sharded else torch.inference_mode():
            in_batches = _is_batchable(model, greedy)
            for batch in _batches(prompts, limits, cache_tokens) if in_batches else ():
                new += _completed(model, greedy, prompts[batch], limits[batch], stops, ended)
            for prompt, limit in () if in_batches else zip(prompts, limits, strict=True):
                new.append(_alone(model, greedy, prompt, limit))
                ended(1)
            while sharded and (burst := _agreed(model, None)):
                _idle(model, greedy, burst)
    finally:
        model.generation_config = own
    return [text.strip(" ") for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def _stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    own = model.generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})


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


def _is_batchable(model: PreTrainedModel, greedy: GenerationConfig) -> bool:
    """Return whether a padded batch gives the logits of single prompts, tried once for each model."""
    if model in _batches_correctly:
        return _batches_correctly[model]
    size = model.get_input_embeddings().weight.shape[0]
    # Of different lengths, and one ends before the other.
    prompts = [[token % size for token in range(3, 3 + length)] for length in (3, 7)]
    limits = [2, 4]
    stops, greedy.eos_token_id = greedy.eos_token_id, None
    try:
        alone = []
        for prompt, limit in zip(prompts, limits, strict=True):
            with _recorded_logits(model) as logits:
                alone.append((_alone(model, greedy, prompt, limit), [each[0] for each in logits]))
        try:
            with _recorded_logits(model) as logits:
                batch = _completed(model, greedy, prompts, limits, [])
        except Exception:
            correct = False
        else:
            rows = [[each[0] for each in logits[:2]], [each[-1] for each in logits]]
            correct = all(map(_agree, zip(batch, rows, strict=True), alone))
    finally:
        greedy.eos_token_id = stops
    if not correct:
        name = type(model).__name__
        if is_sharded(model):
            raise InputError(
                f"{name} cannot generate in batches, which a sharded model needs: use trainer.strategy ddp"
            )
        rank_zero_info(f"answers are generated one at a time: {name} gives others for a padded batch")
    _batches_correctly[model] = correct
    return correct


def _agree(one: tuple[list[int], list[Tensor]], other: tuple[list[int], list[Tensor]]) -> bool:
    """Return whether tokens and logits of two completions agree, up to a token that rounding may have decided."""
    if len(one[1]) != len(other[1]):
        return False
    for token, expected_token, logits, expected in zip(one[0], other[0], one[1], other[1], strict=True):
        tolerance = TOLERANCE if expected.dtype in (torch.float32, torch.float64) else HALF_TOLERANCE
        if not (logits - expected).abs().max() <= tolerance * expected.abs().max():
            return False
        if token != expected_token:
            break
    return True


@contextmanager
def _recorded_logits(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Record what the output head gives at the last position of each row, at each step."""
    steps: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: steps.append(output[:, -1].clone())
    )
    try:
        yield steps
    finally:
        hook.remove()


def _alone(model: PreTrainedModel, greedy: GenerationConfig, prompt: list[int], limit: int) -> list[int]:
    """Return the new tokens of a prompt with its stop token, as transformers generates them."""
    greedy.max_new_tokens = limit
    ids = torch.tensor([prompt], device=model.get_input_embeddings().weight.device)
    try:
        whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} cannot generate text ({short_message(error)}): set forget_quality.generate_every to 0 "
            "and samples.rows to 0"
        ) from error
    tokens: list[int] = whole[0, len(prompt) :].tolist()
    return tokens


def _completed(
    model: PreTrainedModel,
    greedy: GenerationConfig,
    prompts: Sequence[list[int]],
    limits: Sequence[int],
    stop_tokens: Sequence[int],
    ended: Callable[[int], None] = lambda count: None,
) -> list[list[int]]:
    """Return the new tokens of each row with its stop token. Prompts are padded on the left."""
    device = model.get_input_embeddings().weight.device
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts], device=device)
    stops = torch.tensor(stop_tokens, device=device)
    cache = _cache(model)
    new: list[list[int]] = [[] for _ in prompts]
    running, done = list(range(len(prompts))), 0
    while running:
        burst = _agreed(model, min(BURST, *(limits[row] - done for row in running)))
        greedy.max_new_tokens = burst
        ids = model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=greedy
        )
        done += burst
        mask = torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], dim=1)
        tokens = ids[:, width:]
        # Position of the first stop token; transformers pads the rest of a burst.
        ends = (torch.isin(tokens, stops).cumsum(1) == 0).sum(1).tolist()
        kept = []
        for place, (row, end, row_tokens) in enumerate(zip(running, ends, tokens.tolist(), strict=True)):
            new[row] = row_tokens[: end + 1]
            if end == len(row_tokens) and done < limits[row]:
                kept.append(place)
        if 0 < len(kept) < len(running):
            places = torch.tensor(kept, device=device)
            ids, mask = ids[places], mask[places]
            cache.reorder_cache(places)
        ended(len(running) - len(kept))
        running = [running[place] for place in kept]
    return new


def _agreed(model: PreTrainedModel, burst: int | None) -> int:
    """Return the tokens to generate next: with a sharded model the fewest that any rank asks for, 0 once none does."""
    if not is_sharded(model):
        return burst or 0
    asked = torch.tensor(burst or BURST + 1, device=model.get_input_embeddings().weight.device)
    dist.all_reduce(asked, dist.ReduceOp.MIN)
    return 0 if asked > BURST else int(asked)


def _idle(model: PreTrainedModel, greedy: GenerationConfig, burst: int) -> None:
    """Take part in the forward passes of other ranks after the rows of this rank have ended."""
    greedy.max_new_tokens = burst
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy)


def _cache(model: PreTrainedModel) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    cache.layers = [_ReservingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


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

    def _expose(self, length: int) -> None:
        self.keys, self.values = (memory[:, :, :length] for memory in self.reserved)


def _empty(states: Tensor, length: int) -> Tensor:
    """Return uninitialized keys or values of another length."""
    return states.new_empty(*states.shape[:2], length, states.shape[-1])
