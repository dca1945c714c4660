"""Unlearning by self-distillation on adjusted logits (UNDIAL)."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from dipo_pl.errors import check_number
from dipo_pl.losses.base import Loss, Terms
from dipo_pl.losses.softmax import softmax_


class UNDIAL(Loss):
    r"""Loss that imitates the reference with the answer's tokens made unlikely; for forget rows.

        L = mean over answer tokens of - sum_v softmax(z_ref - beta onehot(y))_v log p_v, in nats

    The imitated distribution is fixed, so that the loss has a minimum, the entropy of that distribution. With
    beta = 0 the loss is the cross-entropy to the reference.

    Source: Dong et al. 2024, arXiv:2402.10052. Its code and open-unlearning take the mean over all positions
    of the batch, prompt and padding included, and open-unlearning's also lowers token V - 100 where there is
    no label.

    Args:
        beta: nats subtracted from the token's logit, >= 0 (3, 10 or 30 in the paper).
    """

    uses_reference: ClassVar[bool] = True
    mean_over: ClassVar[Literal["sequences", "tokens"]] = "tokens"

    def __init__(self, beta: float = 10.0) -> None:
        check_number("UNDIAL.beta", beta, minimum=0)
        self.beta = beta

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        """Return the cross-entropy of each position to the adjusted reference."""
        assert reference_logits is not None
        imitated = self._lower_(reference_logits.clone(), targets).softmax(dim=-1)
        return -(imitated * logits.log_softmax(dim=-1)).sum(dim=-1)

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        """Return the terms and their gradient: p minus the adjusted reference."""
        assert reference_logits is not None
        imitated = self._lower_(reference_logits, targets)
        softmax_(imitated)
        expected = torch.linalg.vecdot(imitated, logits)
        return Terms(softmax_(logits) - expected, logits.sub_(imitated), {})

    def _lower_(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.scatter_add_(-1, targets[:, None], torch.full_like(logits[:, :1], -self.beta))
