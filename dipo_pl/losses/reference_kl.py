"""Divergence from the reference, as a retain loss."""

from typing import ClassVar

import torch
from torch import Tensor

from dipo_pl.losses.base import Loss, Terms
from dipo_pl.losses.softmax import softmax_


class ReferenceKL(Loss):
    r"""Loss that keeps next-token distributions as they are under the reference; for retain rows.

        L = mean_s (1 / n_s) sum_t KL(ref_t||pi_t),   KL(ref||pi) = sum_v ref_v (log ref_v - log pi_v)

    over the answer's n_s positions and the full vocabulary, in nats. At policy = reference it is 0, and so is
    its gradient, pi - ref.

    Source: TOFU, arXiv:2401.06121, the KL term of "KL minimization". TOFU's paper includes the question's
    positions. The code of TOFU, NPO and open-unlearning divides the sum by all positions of the batch, prompt
    and padding included: with rows padded to 500 tokens that term is much smaller than this one.
    """

    uses_reference: ClassVar[bool] = True

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        """Return KL(ref||pi) of each position."""
        assert reference_logits is not None
        log_reference = reference_logits.log_softmax(dim=-1)
        return (log_reference.exp() * (log_reference - logits.log_softmax(dim=-1))).sum(dim=-1)

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        """Return the terms and their gradient pi - ref."""
        assert reference_logits is not None
        gap = reference_logits - logits
        normalizer, reference_normalizer = softmax_(logits), softmax_(reference_logits)
        values = torch.linalg.vecdot(reference_logits, gap) + (normalizer - reference_normalizer)
        return Terms(values, logits.sub_(reference_logits), {})

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Return the mean over the positions of a sequence."""
        return sums / lengths
