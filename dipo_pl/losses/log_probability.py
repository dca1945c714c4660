"""The base of all losses whose term is the target's log-probability, with its closed-form gradient."""

from abc import abstractmethod

import torch
from torch import Tensor

from dipo_pl.losses.base import Loss, Terms


def target_log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(z)_y in nats: [N, V], [N] -> [N]."""
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(dim=-1)


class LogProbabilityLoss(Loss):
    r"""q_t = log p(y_t), or log p(y_t) - log p_ref(y_t) where the loss uses the reference.

    dq_t / dz_t = onehot(y_t) - softmax(z_t).
    """

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        values = target_log_probability(logits, targets)
        if reference_logits is not None:
            values = values - target_log_probability(reference_logits, targets)
        return values

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        values = self.terms(logits, targets, reference_logits)
        gradient = torch.softmax(logits, dim=-1).neg_()
        gradient.scatter_add_(-1, targets[:, None], torch.ones_like(gradient[:, :1]))
        return Terms(values, gradient, {})

    @abstractmethod
    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor: ...
