"""Divergence from the reference: the retain loss that asks for the reference's whole distributions."""

from typing import ClassVar

import torch
from torch import Tensor

from dipo_pl.losses.base import Loss, Terms
from dipo_pl.losses.softmax import softmax_


class ReferenceKL(Loss):
    r"""Keeps next-token distributions as the reference has them; for retain rows.

        L = mean_s (1 / n_s) sum_t KL(ref_t||pi_t),   KL(ref||pi) = sum_v ref_v (log ref_v - log pi_v)

    over the answer's n_s positions and the full vocabulary, in nats. At policy = reference it is 0, and so is
    its gradient, pi - ref.

    Source: TOFU, arXiv:2401.06121, the KL term of "KL minimization". TOFU's paper includes the question's
    positions. TOFU's code, NPO's and open-unlearning's divide the sum by all positions of the batch, prompt
    and padding included: with rows padded to 500 tokens their term is much smaller than this one.
    """

    uses_reference: ClassVar[bool] = True

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        assert reference_logits is not None
        log_reference = reference_logits.log_softmax(dim=-1)
        return (log_reference.exp() * (log_reference - logits.log_softmax(dim=-1))).sum(dim=-1)

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        assert reference_logits is not None
        gap = reference_logits - logits
        normaliser, reference_normaliser = softmax_(logits), softmax_(reference_logits)
        values = torch.linalg.vecdot(reference_logits, gap) + (normaliser - reference_normaliser)
        return Terms(values, logits.sub_(reference_logits), {})

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        return sums / lengths
