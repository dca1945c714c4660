"""Weights of rows in a loss, which fall to 0 as their answers become as unlikely as text that the model has never seen."""

import torch
from torch import Tensor

from dipo_pl.losses.heads import Heads
from dipo_pl.losses.log_probability import target_log_probability
from dipo_pl.losses.positions import Positions


def until_weights(positions: Positions, pieces: list[slice], heads: Heads, until: float) -> Tensor:
    r"""Return the weight of each sequence, [S] float32, a constant in the gradient.

        w_s = max(0, 1 - nll_s / until),   nll_s = -(1 / n_s) sum_t log p(y_t)

    It is 1 where the answer is certain. It falls gradually and not at once, because an optimizer with momentum goes on for
    about ten steps after a loss has stopped, and because rows that lag behind then weigh more than the others.

    Args:
        positions: all positions of the sequences.
        pieces: those whose logits exist at a time; together all of them.
        heads: of which the policy's is used.
        until: mean negative log-likelihood of an answer, nats a token.
    """
    found = []
    for piece in pieces:
        states, targets, _ = positions.given(piece)
        found.append(target_log_probability(heads.logits("policy", states), targets))
    sums = positions.sums(torch.cat(found), slice(0, len(positions.counts)), slice(0, len(positions)))
    return (1 + sums / positions.counts / until).clamp_(min=0)
