"""Maximum entropy (ME): makes next-token distributions uniform."""

import math

from torch import Tensor

from dipo_pl.losses.base import Loss, Terms
from dipo_pl.losses.entropy import entropy_and_gradient_
from dipo_pl.losses.softmax import softmax_


class MaximumEntropy(Loss):
    r"""Loss that makes the policy guess, as a model with random weights does; for forget rows.

        L = mean_s (1 / n_s) sum_t KL(p_t||u) = mean_s (1 / n_s) sum_t (log V - H(p_t)), in nats

    with u uniform over the vocabulary and H the entropy; between 0, at p = u, and log V. Its gradient vanishes
    where the policy is certain of any token.

    Source: Yuan et al. 2024, arXiv:2410.08109, maximizing entropy. The paper includes the question's positions.
    Its code minimizes KL(u||p) instead, as a mean over all positions of the batch, padding included.

    Args:
        reverse: true takes KL(u||p) = - log V - mean_v log p_v, which has no upper bound, and a gradient, p - u,
            that does not vanish.
    """

    def __init__(self, reverse: bool = False) -> None:
        self.reverse = reverse

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        """Return the divergence of each position between p and the uniform distribution."""
        log_p = logits.log_softmax(dim=-1)
        if self.reverse:
            return -log_p.mean(dim=-1) - math.log(logits.shape[-1])
        return (log_p.exp() * log_p).sum(dim=-1) + math.log(logits.shape[-1])

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        """Return the terms and their closed-form gradient."""
        vocabulary = logits.shape[-1]
        if self.reverse:
            mean = logits.mean(dim=-1)
            values = softmax_(logits) - mean - math.log(vocabulary)
            return Terms(values, logits.sub_(1 / vocabulary), {})
        entropy, gradient = entropy_and_gradient_(logits)
        return Terms(math.log(vocabulary) - entropy, gradient.neg_(), {})

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Return the mean over the positions of a sequence."""
        return sums / lengths
