"""The loss of each answer, for measuring: what the metrics are made of."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dipo_pl.engine import default_token_budget
from dipo_pl.head import OutputHead


@torch.no_grad()
def answer_nll(
    states: Tensor, targets: Tensor, lengths: Sequence[int], head: OutputHead, token_budget: int | None = None
) -> Tensor:
    """Mean of -log p(y_t) over each answer's tokens, EOS included, in nats per token.

    Args:
        states: [N, d] last hidden states at the positions that predict answer tokens.
        targets: [N] the answer tokens.
        lengths: tokens of each of the S answers, at least 1; they sum to N.
        head: applied to `token_budget` positions at a time; None is `default_token_budget`.
    Returns:
        [S] float32.
    """
    head = head.cast(states.dtype)
    token_budget = token_budget or default_token_budget(states.device)
    pieces = zip(states.split(token_budget), targets.split(token_budget), strict=True)
    token_nll = torch.cat(
        [functional.cross_entropy(head.logits(some), wanted, reduction="none") for some, wanted in pieces]
    )
    counts = torch.tensor(lengths, device=states.device)
    answer = torch.repeat_interleave(counts, output_size=len(token_nll))
    sums = torch.zeros(len(lengths), dtype=torch.float32, device=states.device)
    return sums.index_add_(0, answer, token_nll) / counts
