"""Cross-entropy unlearning (CE-U): cross-entropy to the policy's own distribution without the answer's token."""

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from dipo_pl.errors import check_count
from dipo_pl.losses.base import Loss, Terms
from dipo_pl.losses.softmax import softmax_


class CEU(Loss):
    r"""Loss that moves probability from the answer's tokens to the others, in proportion; for forget rows.

        L = mean over answer tokens of - sum_v u_v log p_v,   u = softmax(z with z_y = -inf), in nats

    u is a constant in the gradient, which is p_y (onehot(y) - u). Unlike that of gradient ascent, it is neither
    small where the model is certain nor unbounded where it has forgotten. The value is the entropy of u
    plus -log(1 - p_y).

    Source: Yang 2025, arXiv:2503.01224, CE-U; open-unlearning's version is the author's own.

    Args:
        skip: tokens at the start of each answer that are left out, >= 0 (1 in the paper: the first token of an
            answer carries little information).
    """

    mean_over: ClassVar[Literal["sequences", "tokens"]] = "tokens"

    def __init__(self, skip: int = 1) -> None:
        check_count("CEU.skip", skip, 0)
        self.skip = skip

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        """Return the cross-entropy of each position to u."""
        others = logits.detach().scatter(-1, targets[:, None], -torch.inf).softmax(dim=-1)
        return -(others * logits.log_softmax(dim=-1)).sum(dim=-1)

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        """Return the terms, their gradient p_y (onehot(y) - u), and p_y as a part."""
        targets = targets[:, None]
        others = logits.scatter(-1, targets, -torch.inf)
        rest = softmax_(others)
        log_odds = logits.gather(-1, targets).squeeze(-1) - rest
        values = rest + functional.softplus(log_odds) - torch.linalg.vecdot(others, logits)
        probability = torch.sigmoid(log_odds)
        gradient = others.mul_(-probability[:, None]).scatter_(-1, targets, probability[:, None])
        return Terms(values, gradient, {"probability": probability})
