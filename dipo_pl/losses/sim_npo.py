"""Simple negative preference optimization: NPO without a reference, with answers' lengths divided out."""

import math

from torch import Tensor
from torch.nn import functional

from dipo_pl.errors import InputError
from dipo_pl.losses.log_probability import LogProbabilityLoss


class SimNPO(LogProbabilityLoss):
    r"""Makes an answer's tokens unlikely on average, whatever any reference thinks of them; for forget rows.

        L = -(2 / beta) mean_s log sigma(-(beta / n_s) log p(y_s) - gamma)

    with log p(y_s) the sum over the answer's n_s tokens, in nats. At p(y) = 1 it is 2 ln(1 + e^gamma) / beta;
    for beta -> 0 and gamma = 0 its gradient is gradient ascent's, of the mean over an answer's tokens.

    Source: Fan et al. 2024, arXiv:2410.07163, the SimNPO loss. Its code for TOFU and open-unlearning
    (there `delta`) multiply gamma by beta too: their margin g is gamma = beta g here. Its code for MUSE
    applies the loss to raw logits; this does not.

    Args:
        beta: inverse temperature, > 0 (2.5 on TOFU forget05, 4.5 on forget10, 0.7 on MUSE).
        gamma: margin, >= 0; more of it makes the pull last longer (0 on TOFU).
    """

    def __init__(self, beta: float = 4.5, gamma: float = 0.0) -> None:
        if not 0 < beta < math.inf:
            raise InputError(f"SimNPO.beta must be a finite number > 0, got {beta}")
        if not 0 <= gamma < math.inf:
            raise InputError(f"SimNPO.gamma must be a finite number >= 0, got {gamma}")
        self.beta = beta
        self.gamma = gamma

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        return functional.softplus(self.beta * sums / lengths + self.gamma) * (2 / self.beta)

    def sequence_parts(self, sums: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        return {"log_probability": sums / lengths}
