"""Generation from tokenized prompts, greedy or by sampling.

Prompts are completed in batches where these give what transformers gives for each prompt alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dipo_pl.distributed import is_sharded
from dipo_pl.errors import InputError, TrainingError, short_message
from dipo_pl.models.eval_mode import eval_mode
from dipo_pl.models.padded_completion import Draws, completed, wait_for_others
from dipo_pl.models.sampling import Sampling

# Largest difference of logits of the trial, as a share of the largest logit, in float32 and in half precision.
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.2

# Whether padding may follow the first tokens of a batch; None where no padded batch is right.
_gaps: WeakKeyDictionary[PreTrainedModel, bool | None] = WeakKeyDictionary()

# The new tokens of a prompt, and the logits that each was chosen by.
Completion = tuple[list[int], list[Tensor]]


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    cache_tokens: int = 16_384,
    ended: Callable[[int], None] = lambda count: None,
    known: Sequence[list[int]] | None = None,
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
        known: first tokens of each completion, where these are known already; they are not generated again.

    Returns:
        A text for each prompt.

    Raises:
        InputError: the model cannot generate, or not in batches and is sharded.
    """
    if not prompts and not is_sharded(model):
        return []
    with _generation(model, tokenizer, prompts, max_new_tokens) as (greedy, stops, limits):
        new = [
            _until_stop(tokens[:limit], stops)
            for tokens, limit in zip(known or [[]] * len(prompts), limits, strict=True)
        ]
        rows = [
            row
            for row, (tokens, limit) in enumerate(zip(new, limits, strict=True))
            if len(tokens) < limit and not (tokens and tokens[-1] in stops)
        ]
        if len(rows) < len(prompts):
            ended(len(prompts) - len(rows))
        rest = [[*prompts[row], *new[row]] for row in rows]
        limits = [limits[row] - len(new[row]) for row in rows]
        found: list[list[int]] = []
        gaps = _tried(model, greedy)
        if gaps is not None:
            for batch in _batches(rest, limits, cache_tokens):
                found += completed(model, rest[batch], limits[batch], stops, ended, gaps=gaps)
        else:
            for prompt, limit in zip(rest, limits, strict=True):
                found.append(_alone(model, greedy, prompt, limit))
                ended(1)
        for row, tokens in zip(rows, found, strict=True):
            new[row] += tokens
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
        in_batches = _tried(model, greedy) is not None
        for prompt, limit, row in zip(prompts, limits, rows, strict=True):
            numbers = sampling.numbers(row, limit)
            together = max(1, cache_tokens // (len(prompt) + limit)) if in_batches else 1
            new: list[list[int]] = []
            for some in numbers.split(together):
                if in_batches:
                    new += completed(
                        model, [prompt] * len(some), [limit] * len(some), stops, ended, (sampling, some)
                    )
                else:
                    new.append(_alone(model, greedy, prompt, limit, (sampling, some)))
                    ended(1)
            found.append(_texts(tokenizer, new))
    return found


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
            wait_for_others(model)
    finally:
        model.generation_config = own


def _until_stop(tokens: Sequence[int], stops: Sequence[int]) -> list[int]:
    """Return the tokens up to the first that ends a completion."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return list(tokens[: end + 1])


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


def _tried(model: PreTrainedModel, greedy: GenerationConfig) -> bool | None:
    """Return how a padded batch gives the logits of single prompts, tried once for each model; see `_gaps`."""
    if model in _gaps:
        return _gaps[model]
    size = model.get_input_embeddings().weight.shape[0]
    # Prompts of different lengths with a common beginning, of which one ends before the other.
    prompts = [[token % size for token in range(3, 3 + length)] for length in (3, 7)]
    limits = [2, 4]
    stops, greedy.eos_token_id = greedy.eos_token_id, None
    alone: list[Completion] = []
    try:
        for prompt, limit in zip(prompts, limits, strict=True):
            with _recorded_logits(model) as logits:
                alone.append((_alone(model, greedy, prompt, limit), [each[0] for each in logits]))
    finally:
        greedy.eos_token_id = stops
    _gaps[model] = next(
        (gaps for gaps in (True, False) if _is_right(model, prompts, limits, gaps, alone)), None
    )
    if _gaps[model] is None:
        name = type(model).__name__
        if is_sharded(model):
            raise InputError(
                f"{name} cannot generate in batches, which a sharded model needs: use trainer.strategy ddp"
            )
        rank_zero_info(f"answers are generated one at a time: {name} gives others for a padded batch")
    return _gaps[model]


def _is_right(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    limits: Sequence[int],
    gaps: bool,
    alone: Sequence[Completion],
) -> bool:
    """Return whether a padded batch of two prompts, of which the first ends first, agrees with each of them alone."""
    logits: list[Tensor] = []
    try:
        new = completed(
            model, prompts, limits, [], gaps=gaps, observe=lambda each: logits.append(each.clone())
        )
    except Exception:
        return False
    rows = [each[0] for each in logits[: limits[0]]], [each[-1] for each in logits]
    return all(_agree(model, *pair) for pair in zip(zip(new, rows, strict=True), alone, strict=True))


def _agree(model: PreTrainedModel, one: Completion, other: Completion) -> bool:
    """Return whether tokens and logits of two completions agree, up to a token that rounding may have decided."""
    if len(one[1]) != len(other[1]):
        return False
    for token, expected_token, logits, expected in zip(one[0], other[0], one[1], other[1], strict=True):
        half = {torch.bfloat16, torch.float16} & {expected.dtype, model.dtype}
        tolerance = HALF_TOLERANCE if half else TOLERANCE
        if not (logits - expected).abs().max() <= tolerance * expected.abs().max():
            return False
        if token != expected_token:
            break
    return True


@contextmanager
def _recorded_logits(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Record the logits at the last position of each row, at each step of transformers' `generate`."""
    steps: list[Tensor] = []
    hook = model.register_forward_hook(
        lambda module, inputs, output: steps.append(output.logits[:, -1].clone())
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
    choice = _choice(draws, len(prompt))
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


def _choice(draws: Draws | None, width: int) -> dict[str, LogitsProcessorList]:
    """Return the option of transformers' `generate` that draws the next tokens of a sample."""
    if draws is None:
        return {}
    sampling, numbers = draws
    return {"logits_processor": LogitsProcessorList([sampling.processor(numbers, width)])}
