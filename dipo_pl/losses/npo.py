"""Negative preference optimization."""

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from dipo_pl.errors import check_number
from dipo_pl.losses.log_probability import LogProbabilityLoss


class NPO(LogProbabilityLoss):
    r"""Loss that makes an answer less likely than it is under the reference; for forget rows.

        L = (2 / beta) mean_s log(1 + (p(y) / p_ref(y))^beta) = -(2 / beta) mean_s log sigma(-beta Q_s)

    with Q_s = log p(y) - log p_ref(y), sums over the answer's tokens, in nats. At p = p_ref it is
    2 ln 2 / beta; for beta -> 0 its gradient is that of gradient ascent on the sequence sum.

    Source: Zhang et al. 2024, arXiv:2404.05868, Eq. 3. MUSE's code applies it to raw logits instead.

    Args:
        beta: inverse temperature, > 0 (0.1 in the paper).
    """

    uses_reference: ClassVar[bool] = True

    def __init__(self, beta: float = 0.1) -> None:
        check_number("NPO.beta", beta, above=0)
        self.beta = beta

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Return (2 / beta) log(1 + e^(beta Q))."""
        return functional.softplus(self.beta * sums) * (2 / self.beta)

    def sequence_parts(self, sums: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Return the log-ratio Q."""
        return {"log_ratio": sums}
