"""Teacher-forced scores of given answers: their loss, and the probability of each of their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dipo_pl.models.head import OutputHead, default_token_budget


@dataclass(frozen=True)
class TokenScores:
    """Scores of N answer tokens, where p is the model's distribution at the position that predicts the token.

    Attributes:
        targets: [N] int64, the answer tokens y_t.
        log_probabilities: [N] float32, log p(y_t) in nats.
        predictions: [N] int64, argmax p.
        means: [N] float32, sum_v p(v) log p(v) in nats: the negative entropy.
        variances: [N] float32, sum_v p(v) (log p(v) - mean)^2.
    """

    targets: Tensor
    log_probabilities: Tensor
    predictions: Tensor
    means: Tensor
    variances: Tensor


@torch.no_grad()
def answer_scores(
    states: Tensor,
    targets: Tensor,
    lengths: Sequence[int],
    head: OutputHead,
    detailed: Tensor | None = None,
    token_budget: int | None = None,
    places: Tensor | None = None,
) -> tuple[Tensor, TokenScores]:
    """Return the mean of -log p(y_t) over the tokens of each answer, EOS included, and scores of single tokens.

    Args:
        states: [U, d] last hidden states at the positions that predict answer tokens.
        targets: [N] the answer tokens.
        lengths: number of tokens of each of the S answers, at least 1; they sum to N.
        head: output head of the model.
        detailed: [N] bool, the tokens whose scores are returned; None is all.
        token_budget: positions whose logits exist at a time; None is `default_token_budget`.
        places: [N] int64, the state that predicts each token; None is a state for each.

    Returns:
        [S] float32, the mean loss of each answer in nats per token; the scores of the D detailed tokens.
    """
    head = head.cast(states.dtype)
    token_budget = token_budget or default_token_budget(states.device)
    if detailed is None:
        detailed = torch.ones_like(targets, dtype=torch.bool)
    if places is None:
        places = torch.arange(len(targets), device=states.device)
    # Buffers that are reused stay in the cache and cost no page faults.
    shape = (2, min(token_budget, len(states)), len(head.weight))
    logits, log_p = torch.empty(shape, dtype=torch.float32, device=states.device)
    token_log_probabilities, means, variances = torch.empty(
        3, len(targets), dtype=torch.float32, device=states.device
    )
    predictions = torch.empty_like(targets)
    for first in range(0, len(states), token_budget):
        some = states[first : first + token_budget]
        size = len(some)
        torch.log_softmax(head.logits(some, out=logits[:size]), -1, out=log_p[:size])
        here = (first <= places) & (places < first + size)
        token_log_probabilities[here] = log_p[places[here] - first, targets[here]]
        here &= detailed
        predictions[here], means[here], variances[here] = _details(log_p[places[here] - first])
    counts = torch.tensor(lengths, device=states.device)
    answer = torch.repeat_interleave(counts, output_size=len(targets))
    sums = torch.zeros(len(lengths), dtype=torch.float32, device=states.device)
    nll = -sums.index_add_(0, answer, token_log_probabilities) / counts
    columns = targets, token_log_probabilities, predictions, means, variances
    return nll, TokenScores(*(each[detailed] for each in columns))


def _details(log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return argmax p, and the mean and variance of log p under p."""
    p = log_p.exp()
    means = (p * log_p).sum(-1)
    variances = (p * (log_p - means[:, None]) ** 2).sum(-1)
    return log_p.argmax(-1), means, variances
