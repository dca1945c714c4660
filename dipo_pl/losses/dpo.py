"""Direct preference optimization of another answer over the one to be forgotten."""

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from dipo_pl.errors import check_number
from dipo_pl.losses.log_probability import LogProbabilityLoss


class DPO(LogProbabilityLoss):
    r"""Loss that prefers an alternate answer (`data.alternates`) to a forget row's own.

        L = - mean_s log sigma(beta (Q'_s - Q_s)),   Q = log p(y) - log p_ref(y)

    with Q' of the alternate answer and Q of the row's own to the same question, sums over each answer's
    tokens, in nats. At p = p_ref it is ln 2, and its gradient is that of (beta / 2) mean_s (Q_s - Q'_s). With
    refusals as alternates it is IdkDPO, with plausible wrong answers AltPO.

    Source: Rafailov et al. 2023, arXiv:2305.18290, Eq. 7. Unlearning methods multiply it by a factor: 1 / beta
    in NPO's paper (arXiv:2404.05868, Eq. 2), 2 / beta in the code of NPO, AltPO (arXiv:2409.13474) and
    open-unlearning. Factor f on this loss is factor 1 / f on the retain loss.

    Args:
        beta: inverse temperature, > 0 (0.1 in NPO's paper and AltPO's code).
    """

    uses_reference: ClassVar[bool] = True
    companions: ClassVar[tuple[str, ...]] = ("alternate",)

    def __init__(self, beta: float = 0.1) -> None:
        check_number("DPO.beta", beta, above=0)
        self.beta = beta

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Return -log sigma(beta (Q' - Q))."""
        own, alternate = sums.unbind(-1)
        return -functional.logsigmoid(self.beta * (alternate - own))

    def sequence_parts(self, sums: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Return Q, the margin Q' - Q, and whether it is positive."""
        own, alternate = sums.unbind(-1)
        margin = alternate - own
        return {"log_ratio": own, "margin": margin, "margin_positive": (margin > 0).float()}
