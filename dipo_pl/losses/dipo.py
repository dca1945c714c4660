"""Distribution preference optimization, on forget and on retain rows."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dipo_pl.constructors import LogitModulation, PreferenceConstructor
from dipo_pl.errors import InputError
from dipo_pl.losses.base import Loss, Terms


class DiPO(Loss):
    r"""Prefers the forgetting distribution of each position to the remembering one; for forget rows.

        L = - mean_s log sigma(beta M_s),
        M_s = sum_t D(l_t||pi_t) - D(w_t||pi_t) + D(w_t||ref_t) - D(l_t||ref_t)
            = sum_t sum_v (w - l)_tv (z - z_ref)_tv

    with w the preferred and l the dispreferred distribution, D the Kullback-Leibler divergence over the
    full vocabulary in nats, z and z_ref the raw logits of policy and reference. The second line follows
    because the entropies of w and l and the normalisers of both models cancel. w and l are constants in
    the gradient, so dM_s/dz_t = (w - l)_t. At policy = reference L is ln 2, and its gradient is not 0.

    Source: Qin et al., arXiv:2510.04773, Eq. 14.

    Args:
        beta: inverse temperature, > 0 (0.05 in the paper).
        constructor: builds the pair; null takes the module's, so that forget and retain share one.
    """

    uses_reference: ClassVar[bool] = True
    _sign: ClassVar[float] = 1.0

    def __init__(self, beta: float = 0.05, constructor: PreferenceConstructor | None = None) -> None:
        if not beta > 0:
            raise InputError(f"{type(self).__name__}.beta must be > 0, got {beta}")
        self.beta = beta
        self.constructor = constructor

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        assert reference_logits is not None
        preferred_minus_dispreferred = self._difference(logits.detach())[0]
        return (preferred_minus_dispreferred * (logits - reference_logits)).sum(-1)

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        assert reference_logits is not None
        difference, kept = self._difference(logits)
        return Terms(
            torch.linalg.vecdot(difference, logits - reference_logits),
            difference,
            {"kept": kept.float()},
        )

    def _difference(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        if self.constructor is None:
            self.constructor = LogitModulation()
        values, kept = self.constructor.difference(logits)
        return values.mul_(self._sign), kept

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        return -functional.logsigmoid(self.beta * sums)

    def sequence_parts(self, sums: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        return {"margin": sums, "margin_positive": (sums > 0).float()}


class DiPORetain(DiPO):
    """DiPO with the roles of the pair reversed; for retain rows."""

    _sign: ClassVar[float] = -1.0
