"""Kahneman-Tversky optimization with undesirable answers only."""

from typing import ClassVar

import torch
from torch import Tensor

from dipo_pl.errors import check_number
from dipo_pl.losses.log_probability import LogProbabilityLoss


class KTO(LogProbabilityLoss):
    r"""Loss that makes an answer less likely than it is under the reference, against a baseline; for forget rows.

        L = mean_s 1 - sigma(beta (z_0 - Q_s)),   z_0 = max(0, mean_s Q'_s),   Q = log p(y) - log p_ref(y)

    with Q_s of a row's answer and Q'_s of the same question with another row's answer, sums over each
    answer's tokens, in nats. z_0 estimates KL(p||p_ref); it is one number for the batch and a constant in the
    gradient. Each micro-batch on each rank has its own, so that the loss depends on how a batch is divided. At
    p = p_ref the loss is 1/2, and its gradient is that of (beta / 4) mean_s Q_s.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, the undesirable half of the KTO loss, lambda_U = 1 (with
    this half only, lambda_U is a factor on the loss: 1 / model.retain_weight). Its code averages z_0 over ranks.
    NPO's paper unlearns with (2 / beta) mean_s -log sigma(beta (z_0 - Q_s)) instead, with refusals to the
    row's question in Q'_s (arXiv:2404.05868, Eq. 18); its code has neither the max nor the beta of z_0.

    Args:
        beta: inverse temperature, > 0 (0.1 in both papers).
    """

    uses_reference: ClassVar[bool] = True
    companions: ClassVar[tuple[str, ...]] = ("mismatched",)
    constant_companions: ClassVar[tuple[str, ...]] = ("mismatched",)

    def __init__(self, beta: float = 0.1) -> None:
        check_number("KTO.beta", beta, above=0)
        self.beta = beta

    def constant_sums(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Return z_0 for every row."""
        return sums.mean(dim=0, keepdim=True).clamp(min=0).expand_as(sums)

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Return sigma(beta (Q - z_0))."""
        own, baseline = sums.unbind(-1)
        return torch.sigmoid(self.beta * (own - baseline))

    def sequence_parts(self, sums: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Return Q, and z_0 for every row."""
        own, baseline = sums.unbind(-1)
        return {"log_ratio": own, "baseline": baseline}
