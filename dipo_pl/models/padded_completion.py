"""Completion of prompts in a padded batch, token by token; a row leaves the batch when it has ended."""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from itertools import takewhile

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dipo_pl.distributed import is_sharded
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import decoder_of
from dipo_pl.models.key_value_cache import attends_to_all, keep_rows, key_value_cache
from dipo_pl.models.sampling import Sampling

# Distribution that tokens are drawn from, and the random numbers of each sample of a prompt, [S, tokens].
Draws = tuple[Sampling, Tensor]


def completed(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    limits: Sequence[int],
    stops: Sequence[int],
    ended: Callable[[int], None] = lambda count: None,
    draws: Draws | None = None,
    gaps: bool = True,
    observe: Callable[[Tensor], None] = lambda logits: None,
) -> list[list[int]]:
    """Return the new tokens of each row with its stop token.

    What all prompts begin with, such as the system's turn of a chat, is computed once, and the padding of shorter prompts
    follows it. Where the model does not take that gap, padding precedes the prompts, and each is computed whole.

    Args:
        model: a causal language model in eval mode; if it is sharded, `wait_for_others` must follow on all ranks.
        prompts: tokens of each row's prompt, at least one.
        limits: greatest number of new tokens of each row, at least 1.
        stops: tokens that end a row.
        ended: called with the number of rows that end at a token.
        draws: how tokens are drawn, where the rows are samples of one prompt; None takes the most probable ones.
        gaps: whether the model takes padding after the first tokens; a cache with windows or recurrent states does not.
        observe: called with the logits of each token, [rows that have not ended, V].
    """
    device = model.get_input_embeddings().weight.device
    vocabulary = OutputHead.of(model).weight.shape[0]
    cache = key_value_cache(model)
    width, rows = max(map(len, prompts)), len(prompts)
    padding = [width - len(each) for each in prompts]
    shares = rows > 1 and (not any(padding) or (gaps and attends_to_all(cache)))
    common = _common(prompts) if shares else 0
    ids = torch.tensor(
        [[*each[:common], *[0] * gap, *each[common:]] for each, gap in zip(prompts, padding, strict=True)],
        device=device,
    )
    mask = torch.ones(rows, width + max(limits), dtype=torch.bool, device=device)
    for row, gap in enumerate(padding):
        mask[row, common : common + gap] = False
    positions = (mask[:, :width].cumsum(1) - 1).clamp(min=0)
    buffer = torch.empty(rows, vocabulary, dtype=torch.float32, device=device)
    if common:
        _any_rank(model, True)
        _logits(model, ids[:1, :common], mask[:1, :common], positions[:1, :common], cache, buffer[:1])
        cache.reorder_cache(torch.zeros(rows, dtype=torch.long, device=device))
        ids, positions = ids[:, common:], positions[:, common:]
    new: list[list[int]] = [[] for _ in prompts]
    running, done = list(range(rows)), 0
    while running:
        _any_rank(model, True)
        logits = _logits(model, ids, mask[:, : width + done], positions, cache, buffer[: len(running)])
        observe(logits)
        tokens = logits.argmax(-1) if draws is None else draws[0].choose(logits, draws[1][running, done])
        done += 1
        kept = []
        for place, (row, token) in enumerate(zip(running, tokens.tolist(), strict=True)):
            new[row].append(token)
            if token not in stops and done < limits[row]:
                kept.append(place)
        ids, positions = tokens[:, None], positions[:, -1:] + 1
        if len(kept) < len(running):
            ended(len(running) - len(kept))
            order = keep_rows(cache, kept)
            running = [running[place] for place in order]
            ids, positions, mask = (each[order] for each in (ids, positions, mask))
    return new


def wait_for_others(model: PreTrainedModel) -> None:
    """Take part in the forward passes of a sharded model until no rank completes prompts any more."""
    while _any_rank(model, False):
        one = torch.zeros(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device)
        _logits(model, one, torch.ones_like(one, dtype=torch.bool), one, DynamicCache(config=model.config))


def _logits(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    cache: DynamicCache,
    out: Tensor | None = None,
) -> Tensor:
    """Return the logits of the token that follows each row, [B, V] float32.

    Args:
        model: a causal language model.
        ids: [B, T] tokens that are not in the cache yet.
        mask: [B, cached + T] bool.
        positions: [B, T] position ids.
        cache: keys and values of earlier tokens, to which those of these are added.
        out: [B, V] float32, where the logits are written.
    """
    decoder = decoder_of(model)
    options = {"position_ids": positions} if _takes_positions(type(decoder).forward) else {}
    states = decoder(
        input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options
    ).last_hidden_state[:, -1]
    return OutputHead.of(model).gathered().cast(states.dtype).logits(states, out=out)


# A signature is slow to read, and this is asked for every token.
@cache
def _takes_positions(forward: Callable[..., object]) -> bool:
    return "position_ids" in inspect.signature(forward).parameters


def _any_rank(model: PreTrainedModel, goes_on: bool) -> bool:
    """Return whether this process, or any rank of a sharded model, goes on."""
    if not is_sharded(model):
        return goes_on
    asked = torch.tensor(int(goes_on), device=model.get_input_embeddings().weight.device)
    dist.all_reduce(asked, dist.ReduceOp.MAX)
    return bool(asked)


def _common(prompts: Sequence[list[int]]) -> int:
    """Return how many tokens all prompts begin with, of which each has another one after them."""
    shortest = min(map(len, prompts))
    columns = zip(*(each[: shortest - 1] for each in prompts), strict=True)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
