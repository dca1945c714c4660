"""Weighted gradient ascent (WGA), and the base of ascents that weight each token by its probability."""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dipo_pl.errors import check_number
from dipo_pl.losses.base import Loss, Terms
from dipo_pl.losses.log_probability import log_probability_and_softmax_, target_log_probability


class WeightedAscent(Loss):
    r"""Loss that is the mean over answer tokens of w_t log p(y_t), in nats, with w_t a constant in the gradient."""

    mean_over: ClassVar[Literal["sequences", "tokens"]] = "tokens"

    @abstractmethod
    def weight(self, log_p: Tensor) -> Tensor:
        """Return w_t of log p(y_t): [N] -> [N]."""

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        """Return w_t log p(y_t)."""
        log_p = target_log_probability(logits, targets)
        return self.weight(log_p.detach()) * log_p

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        """Return the terms, their closed-form gradient, and the weights."""
        log_p = log_probability_and_softmax_(logits, targets)
        weight = self.weight(log_p)
        gradient = logits.mul_(-weight[:, None])
        gradient.scatter_add_(-1, targets[:, None], weight[:, None])
        return Terms(weight * log_p, gradient, {"token_weight": weight})


class WGA(WeightedAscent):
    r"""Gradient ascent that stops where a token is forgotten; for forget rows.

        w_t = p(y_t)^beta

    The weight counters the factor 1 / p of gradient ascent, by which forgotten tokens dominate: with beta = 1
    the gradient is that of p itself. With beta = 0 it is gradient ascent.

    Source: Wang et al. 2025, arXiv:2502.19301, weighted gradient ascent. The paper writes a sum over an
    answer's tokens; its code and open-unlearning take the mean over a batch's, as here.

    Args:
        beta: exponent, >= 0 (1 in the authors' settings).
    """

    def __init__(self, beta: float = 1.0) -> None:
        check_number("WGA.beta", beta, minimum=0)
        self.beta = beta

    def weight(self, log_p: Tensor) -> Tensor:
        """Return p^beta."""
        return torch.exp(self.beta * log_p)
