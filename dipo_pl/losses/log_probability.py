"""Base of losses whose term is the target's log-probability, with its closed-form gradient."""

from typing import ClassVar

import torch
from torch import Tensor

from dipo_pl.losses.base import Loss, Terms
from dipo_pl.losses.softmax import softmax_


def target_log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log softmax(z)_y in nats: [N, V], [N] -> [N]."""
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(dim=-1)


def log_probability_and_softmax_(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log softmax(z)_y in nats, [N], and turn `logits` into softmax(z) in place."""
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1)
    return chosen - softmax_(logits)


class LogProbabilityLoss(Loss):
    r"""Loss with q_t = sign * log p(y_t), or sign * (log p(y_t) - log p_ref(y_t)) where it uses the reference.

    dq_t / dz_t = sign * (onehot(y_t) - softmax(z_t)).
    """

    sign: ClassVar[float] = 1.0

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        """Return the signed log-probabilities, or log-ratios, of the targets."""
        values = target_log_probability(logits, targets)
        if reference_logits is not None:
            values = values - target_log_probability(reference_logits, targets)
        return self.sign * values

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        """Return the terms and their closed-form gradient."""
        values = log_probability_and_softmax_(logits, targets)
        if reference_logits is not None:
            values = values - log_probability_and_softmax_(reference_logits, targets)
        gradient = logits.mul_(-self.sign)
        gradient.scatter_add_(-1, targets[:, None], torch.full_like(gradient[:, :1], self.sign))
        return Terms(self.sign * values, gradient, {})
