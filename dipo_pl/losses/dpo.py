"""Direct preference optimization of another answer over the one to be forgotten."""

import math
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from dipo_pl.errors import InputError
from dipo_pl.losses.log_probability import LogProbabilityLoss


class DPO(LogProbabilityLoss):
    r"""Prefers an alternate answer to a forget row's own; the data gives it (`data.alternates`).

        L = - mean_s log sigma(beta (Q'_s - Q_s)),   Q = log p(y) - log p_ref(y)

    with Q' of the alternate answer and Q of the row's own to the same question, sums over each answer's
    tokens, in nats. At p = p_ref it is ln 2, and its gradient that of (beta / 2) mean_s (Q_s - Q'_s). With
    refusals for alternates it is IdkDPO, with plausible wrong answers AltPO.

    Source: Rafailov et al. 2023, arXiv:2305.18290, Eq. 7. Where it is used to unlearn it carries a factor:
    1 / beta in NPO's paper (arXiv:2404.05868, Eq. 2), 2 / beta in the code of NPO, AltPO (arXiv:2409.13474)
    and open-unlearning. Weight f on this loss is weight 1 / f on the retain loss.

    Args:
        beta: inverse temperature, > 0 (0.1 in NPO's paper and AltPO's code).
    """

    uses_reference: ClassVar[bool] = True
    companions: ClassVar[tuple[str, ...]] = ("alternate",)

    def __init__(self, beta: float = 0.1) -> None:
        if not 0 < beta < math.inf:
            raise InputError(f"DPO.beta must be a finite number > 0, got {beta}")
        self.beta = beta

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        own, alternate = sums.unbind(-1)
        return -functional.logsigmoid(self.beta * (alternate - own))

    def sequence_parts(self, sums: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        own, alternate = sums.unbind(-1)
        margin = alternate - own
        return {"log_ratio": own, "margin": margin, "margin_positive": (margin > 0).float()}
