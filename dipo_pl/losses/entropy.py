"""Entropy of next-token distributions, a term beside other losses."""

import torch
from torch import Tensor

from dipo_pl.losses.base import Loss, Terms


def entropy_and_gradient_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return H(p) = - sum_v p_v log p_v in nats, [N], and dH/dz = -p (log p + H), [N, V]; overwrites the logits, [N, V]."""
    log_p = logits.log_softmax(dim=-1)
    p = torch.exp(log_p, out=logits)
    entropy = -torch.linalg.vecdot(p, log_p)
    return entropy, log_p.add_(entropy[:, None]).mul_(p).neg_()


class Entropy(Loss):
    r"""Loss that makes next-token distributions sharp, or, with a negative weight, flat.

        L = mean_s (1 / n_s) sum_t H(p_t),   H(p) = - sum_v p_v log p_v, in nats

    Meant to stand beside another loss: `model.forget_entropy` and `model.retain_entropy` are its weights on the two
    kinds of rows. A sharp distribution on forget rows leaves less that sampled answers could leak; a negative weight on
    retain rows keeps their answers diverse.

    Source: Scholten et al. 2025, arXiv:2410.03523, entropy optimization. Its code takes the mean over all positions of the
    batch, prompt and padding included.
    """

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        """Return the entropy of each position."""
        log_p = logits.log_softmax(dim=-1)
        return -(log_p.exp() * log_p).sum(dim=-1)

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        """Return the terms and their closed-form gradient."""
        return Terms(*entropy_and_gradient_(logits), {})

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Return the mean over the positions of a sequence."""
        return sums / lengths
