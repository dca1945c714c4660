"""Distribution preference optimization (DiPO): its forget loss and its retain loss."""

from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from dipo_pl.errors import check_number, check_objects
from dipo_pl.losses.gap import GapLoss, GapWeights
from dipo_pl.preferences.constructors import LogitModulation, PreferenceConstructor


class DiPO(GapLoss):
    r"""Loss that prefers the forgetting distribution of each position to the remembering one; for forget rows.

        L = - mean_s log sigma(beta M_s),
        M_s = sum_t D(l_t||pi_t) - D(w_t||pi_t) + D(w_t||ref_t) - D(l_t||ref_t)
            = sum_t sum_v (w - l)_tv (z - z_ref)_tv

    with w the preferred and l the dispreferred distribution, D the Kullback-Leibler divergence over the
    full vocabulary in nats, z and z_ref the raw logits of policy and reference. The second line follows
    because the entropies of w and l and the normalizers of both models cancel. w and l are constants in
    the gradient, so dM_s/dz_t = (w - l)_t. At policy = reference L is ln 2, and its gradient is not 0.
    The term of a position is the same for both kinds of rows: on retain rows M_s = -Q_s.

    With `per_token`, M_s / n_s takes the place of M_s, with n_s the number of the answer's tokens. The factor sigma(-beta M)
    on the gradient then falls alike for answers of all lengths; with the sum it falls earlier for longer answers. If beta
    is multiplied by the mean length of answers, the loss of an answer of that length does not change.

    Source: Qin et al., arXiv:2510.04773, Eq. 14; `per_token` is not from the paper.

    Args:
        beta: inverse temperature, > 0 (0.05 in the paper).
        constructor: builds the pair; null takes the module's, so that forget and retain share one.
        pairs_from: model whose logits the pair is built from; `policy` in the paper. From the `reference` the
            pair is fixed, and the loss moves the policy toward a distribution one step away from the start.
        per_token: divide the margin by the number of the answer's tokens.
    """

    uses_reference: ClassVar[bool] = True
    _sign: ClassVar[float] = 1.0

    def __init__(
        self,
        beta: float = 0.05,
        constructor: PreferenceConstructor | None = None,
        pairs_from: Literal["policy", "reference"] = "policy",
        per_token: bool = False,
    ) -> None:
        check_objects(type(self).__name__, constructor=constructor)
        check_number(f"{type(self).__name__}.beta", beta, above=0)
        self.beta = beta
        self.shares_constructor = constructor is None
        self.constructor = constructor or LogitModulation()
        self.pairs_from = self.weights_from = pairs_from
        self.per_token = per_token

    def gap_weights(self, logits: Tensor, targets: Tensor) -> GapWeights:
        """Return w - l of the forget loss, and the number of tokens that the filter keeps."""
        difference, kept = self.constructor.difference(logits, targets)
        return GapWeights(difference, {"kept": kept.float()})

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Return -log sigma(beta M)."""
        return -functional.logsigmoid(self.beta * self._margins(sums, lengths))

    def sequence_parts(self, sums: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Return the margin M, or M / n, and whether it is positive."""
        margins = self._margins(sums, lengths)
        return {"margin": margins, "margin_positive": (margins > 0).float()}

    def _margins(self, sums: Tensor, lengths: Tensor) -> Tensor:
        return self._sign * (sums / lengths if self.per_token else sums)


class DiPORetain(DiPO):
    """Loss that is DiPO with the roles of the pair reversed; for retain rows."""

    _sign: ClassVar[float] = -1.0
