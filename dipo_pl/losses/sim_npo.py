"""Simple negative preference optimization: NPO without a reference, normalized by answer length."""

from torch import Tensor
from torch.nn import functional

from dipo_pl.errors import check_number
from dipo_pl.losses.log_probability import LogProbabilityLoss


class SimNPO(LogProbabilityLoss):
    r"""Loss that makes an answer's tokens unlikely on average, without a reference; for forget rows.

        L = -(2 / beta) mean_s log sigma(-(beta / n_s) log p(y_s) - gamma)

    with log p(y_s) the sum over the answer's n_s tokens, in nats. At p(y) = 1 it is 2 ln(1 + e^gamma) / beta;
    for beta -> 0 and gamma = 0 its gradient is that of gradient ascent on the mean over an answer's tokens.

    Source: Fan et al. 2024, arXiv:2410.07163, the SimNPO loss. Its code for TOFU and open-unlearning
    (`delta` there) also multiply gamma by beta: their margin g is gamma = beta g here. Its code for MUSE
    applies the loss to raw logits instead.

    Args:
        beta: inverse temperature, > 0 (2.5 on TOFU forget05, 4.5 on forget10, 0.7 on MUSE).
        gamma: margin, >= 0; a larger one keeps the gradient from vanishing for longer (0 on TOFU).
    """

    def __init__(self, beta: float = 4.5, gamma: float = 0.0) -> None:
        check_number("SimNPO.beta", beta, above=0)
        check_number("SimNPO.gamma", gamma, minimum=0)
        self.beta = beta
        self.gamma = gamma

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Return (2 / beta) log(1 + e^(beta Q / n + gamma))."""
        return functional.softplus(self.beta * sums / lengths + self.gamma) * (2 / self.beta)

    def sequence_parts(self, sums: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Return the mean log-probability of a token."""
        return {"log_probability": sums / lengths}
