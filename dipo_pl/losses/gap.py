"""Base of losses that are linear in the gap between the logits of policy and reference."""

from abc import abstractmethod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dipo_pl.losses.base import Loss, Terms


class GapWeights(NamedTuple):
    """Weights of the gap at a group of positions.

    Attributes:
        values: [N, V] g_t; the engine may write into it.
        parts: [N] tensors by name, to be logged; averaged over positions.
    """

    values: Tensor
    parts: dict[str, Tensor]


class GapLoss(Loss):
    r"""Loss whose term is linear in the gap of the logits: q_t = sum_v g_tv (z - z_ref)_tv, with g constant in the gradient.

    Then dq_t / dz_t = g_t, and the engine needs the logits of one model only, those that g is computed from. With
    z = W h + b,

        q_t = <g W, h> + <g, b> - <g W_ref, h_ref> - <g, b_ref>,   or <g W, h - h_ref> where both models share the head

    and g W, [N, d], is the gradient by h, which is computed anyway. A head with a soft cap is not linear: there the logits
    of both models are computed.

    A subclass gives `gap_weights`, and `terms` follows from them.

    Attributes:
        weights_from: model whose logits g is computed from.

    Raises:
        TypeError: a subclass overrides `terms` or `terms_and_gradient`, which the engine would not call.
    """

    weights_from: Literal["policy", "reference"] = "policy"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("terms", "terms_and_gradient"):
            if name in cls.__dict__:
                raise TypeError(
                    f"{cls.__name__} overrides {name}, and the terms of a GapLoss follow from gap_weights: override "
                    "gap_weights, or derive it from Loss"
                )

    @abstractmethod
    def gap_weights(self, logits: Tensor, targets: Tensor) -> GapWeights:
        """Return g.

        Args:
            logits: [N, V] float32, detached, of the model that `weights_from` names; may be overwritten.
            targets: [N] the tokens to be predicted.
        """

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        """Return sum_v g_v (z - z_ref)_v of each position."""
        assert reference_logits is not None
        source = logits if self.weights_from == "policy" else reference_logits
        weights = self.gap_weights(source.detach().clone(), targets).values
        values: Tensor = torch.linalg.vecdot(weights, logits - reference_logits)
        return values

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        """Return the terms and their gradient g."""
        assert reference_logits is not None
        # The gap takes the place of the logits that g is not computed from.
        source, gap = logits, reference_logits
        if self.weights_from == "reference":
            source, gap = gap, source
        torch.sub(logits, reference_logits, out=gap)
        weights, parts = self.gap_weights(source, targets)
        return Terms(gap.mul_(weights).sum(dim=-1), weights, parts)
