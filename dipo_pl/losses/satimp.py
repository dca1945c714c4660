"""Gradient ascent weighted by saturation and importance."""

import torch
from torch import Tensor

from dipo_pl.errors import check_number
from dipo_pl.losses.wga import WeightedAscent


class SatImp(WeightedAscent):
    r"""Gradient ascent on tokens that are neither forgotten yet nor certain; for forget rows.

        w_t = p(y_t)^beta1 (1 - p(y_t))^beta2

    The first factor vanishes where a token is forgotten (saturation), the second where a token follows from
    those before it (importance). The weight is largest at p = beta1 / (beta1 + beta2). With beta2 = 0 it is WGA.

    Source: Yang et al. 2025, arXiv:2505.11953. The paper writes a sum over an answer's tokens; its code and
    open-unlearning take the mean over a batch's, as here.

    Args:
        beta1: exponent of p, >= 0 (5 in the paper).
        beta2: exponent of 1 - p, >= 0 (1 in the paper).
    """

    def __init__(self, beta1: float = 5.0, beta2: float = 1.0) -> None:
        check_number("SatImp.beta1", beta1, minimum=0)
        check_number("SatImp.beta2", beta2, minimum=0)
        self.beta1 = beta1
        self.beta2 = beta2

    def weight(self, log_p: Tensor) -> Tensor:
        """Return p^beta1 (1 - p)^beta2."""
        # Rounding may leave log p a little above 0, and a negative number to a fractional power is NaN.
        return torch.exp(self.beta1 * log_p) * (-torch.expm1(log_p)).clamp_(min=0).pow_(self.beta2)
