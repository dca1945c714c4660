"""Generation from tokenized prompts, greedy or by sampling.

Prompts are completed in batches where these give what transformers gives for each prompt alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dipo_pl.distributed import is_sharded
from dipo_pl.errors import InputError, TrainingError, short_message
from dipo_pl.models.eval_mode import eval_mode
from dipo_pl.models.key_value_cache import key_value_cache
from dipo_pl.models.sampling import Sampling

# Tokens generated at a time; then finished rows leave the batch.
BURST = 8
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
    if not prompts and not is_sharded(model):
        return []
    with _generation(model, tokenizer, prompts, max_new_tokens) as (greedy, stops, limits):
        new: list[list[int]] = []
        if _is_batchable(model, greedy):
            for batch in _batches(prompts, limits, cache_tokens):
                new += _completed(model, greedy, prompts[batch], limits[batch], stops, ended)
        else:
            for prompt, limit in zip(prompts, limits, strict=True):
                new.append(_alone(model, greedy, prompt, limit))
                ended(1)
    return _texts(tokenizer, new)


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    sampling: Sampling,
    rows: Sequence[int],
    cache_tokens: int = 16_384,
    ended: Callable[[int], None] = lambda count: None,
) -> list[list[str]]:
    """Return `sampling.samples` random completions of each prompt, without special tokens.

    A completion ends as in `generate`. A prompt is computed once for all of its samples, and its samples form batches
    of their own, so that they are bitwise the same whatever other prompts there are, on any rank.

    Args:
        model: a causal language model; if it is sharded, all ranks must call this function together.
        tokenizer: decodes the completions.
        prompts: tokens of each prompt, at least one.
        max_new_tokens: longest completion.
        sampling: the distribution and its random numbers.
        rows: number of each prompt's row, which its random numbers depend on.
        cache_tokens: largest number of tokens in a batch, at least those of one sample.
        ended: called with the number of completions that have ended since the last call.

    Returns:
        For each prompt a text for each sample.

    Raises:
        InputError: the model cannot generate, or not in batches and is sharded.
        TrainingError: the model's logits are not finite.
    """
    if not prompts and not is_sharded(model):
        return []
    found: list[list[str]] = []
    with _generation(model, tokenizer, prompts, max_new_tokens) as (greedy, stops, limits):
        in_batches = _is_batchable(model, greedy)
        for prompt, limit, row in zip(prompts, limits, rows, strict=True):
            numbers = sampling.numbers(row, limit)
            together = max(1, cache_tokens // (len(prompt) + limit)) if in_batches else 1
            new: list[list[int]] = []
            for some in numbers.split(together):
                if in_batches:
                    new += _completed(model, greedy, [prompt], [limit], stops, ended, (sampling, some))
                else:
                    new.append(_alone(model, greedy, prompt, limit, (sampling, some)))
                    ended(1)
            found.append(_texts(tokenizer, new))
    return found


# A distribution, and the random numbers of each sample of a prompt, [S, tokens].
Draws = tuple[Sampling, Tensor]


@contextmanager
def _generation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
) -> Iterator[tuple[GenerationConfig, list[int], list[int]]]:
    """Prepare the model, and yield greedy settings, the stop tokens and the longest completion of each prompt."""
    sharded = is_sharded(model)
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
    try:
        # Weights that a sharded model gathers in inference mode could not be used in a later backward pass.
        with eval_mode(model), torch.no_grad() if sharded else torch.inference_mode():
            yield greedy, stops, limits
            while sharded and (burst := _agreed(model, None)):
                _idle(model, greedy, burst)
    finally:
        model.generation_config = own


def _texts(tokenizer: PreTrainedTokenizerBase, new: Sequence[list[int]]) -> list[str]:
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


def _alone(
    model: PreTrainedModel,
    greedy: GenerationConfig,
    prompt: list[int],
    limit: int,
    draws: Draws | None = None,
) -> list[int]:
    """Return the new tokens of a prompt with its stop token, as transformers generates them."""
    greedy.max_new_tokens = limit
    ids = torch.tensor([prompt], device=model.get_input_embeddings().weight.device)
    choice = _choice(draws, [0], len(prompt))
    try:
        whole = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy, **choice
        )
    except TrainingError:
        raise
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
    draws: Draws | None = None,
) -> list[list[int]]:
    """Return the new tokens of each row with its stop token. Prompts are padded on the left.

    With draws there is one prompt, and a row is one of its samples.
    """
    device = model.get_input_embeddings().weight.device
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts], device=device)
    stops = torch.tensor(stop_tokens, device=device)
    cache = key_value_cache(model)
    if draws is not None:
        ids, mask, limits = _repeated(model, greedy, ids, mask, cache, len(draws[1]), limits)
    new: list[list[int]] = [[] for _ in limits]
    running, done = list(range(len(limits))), 0
    while running:
        burst = _agreed(model, min(BURST, *(limits[row] - done for row in running)))
        greedy.max_new_tokens = burst
        choice = _choice(draws, running, width)
        ids = model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=greedy, **choice
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


def _repeated(
    model: PreTrainedModel,
    greedy: GenerationConfig,
    ids: Tensor,
    mask: Tensor,
    cache: DynamicCache,
    samples: int,
    limits: Sequence[int],
) -> tuple[Tensor, Tensor, Sequence[int]]:
    """Return one prompt's ids, mask and limit once a sample, with its tokens before the last in the cache."""
    places = torch.zeros(samples, dtype=torch.long, device=ids.device)
    if ids.shape[1] > 1:
        # The token that this generates is no one's; it is not in the cache.
        greedy.max_new_tokens = _agreed(model, 1)
        model.generate(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            past_key_values=cache,
            generation_config=greedy,
        )
        cache.reorder_cache(places)
    return ids[places], mask[places], [*limits] * samples


def _choice(draws: Draws | None, running: Sequence[int], width: int) -> dict[str, LogitsProcessorList]:
    """Return the option of transformers' `generate` that draws the next tokens of some samples."""
    if draws is None:
        return {}
    sampling, numbers = draws
    return {"logits_processor": LogitsProcessorList([sampling.processor(numbers[list(running)], width)])}


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
