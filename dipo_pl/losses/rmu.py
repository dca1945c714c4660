"""Representation misdirection for unlearning (RMU): its forget loss and its retain loss."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from dipo_pl.errors import InputError, check_number
from dipo_pl.losses.base import Loss, Terms


class _ActivationDistance(Loss):
    """Loss mean_s (1 / n_s) sum_t ||h_t - target_t||^2 / d, on the hidden states h of one layer."""

    def __init__(self, layer: int | float) -> None:
        if layer < 0 or (isinstance(layer, float) and not layer < 1):
            raise InputError(
                f"{type(self).__name__}.layer must be a layer's number, counted from 0, or a share of the depth in "
                f"[0, 1) (got {layer})"
            )
        self.layer = layer

    @abstractmethod
    def _away(self, states: Tensor, reference_states: Tensor | None) -> Tensor:
        """Return h - target, [N, d], as a new tensor: the states are the model's own."""

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        """Return the mean squared distance of each hidden state to its target."""
        return self._away(logits, reference_logits).square().mean(dim=-1)

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        """Return the terms and their closed-form gradient."""
        away = self._away(logits, reference_logits)
        values = torch.linalg.vecdot(away, away) / away.shape[-1]
        return Terms(values, away.mul_(2 / away.shape[-1]), {})

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Return the mean over the positions of a sequence."""
        return sums / lengths


class RMU(_ActivationDistance):
    r"""Loss that steers the hidden states of one layer toward one random direction; for forget rows.

        L = mean_s (1 / n_s) sum_t ||h_t - c u||^2 / d

    with h_t [d] the layer's output where answer token t is predicted, and u of norm 1, drawn once: uniform on
    [0, 1) in each dimension, then normalized. It is a function of the seed and d alone.

    Source: Li et al. 2024, arXiv:2403.03218, the forget loss. The paper has no 1 / d, a constant factor that its
    code has; its code takes the mean over all positions, padding included, and trains only the
    MLPs' down-projections of this layer and the two before (`model.trainable`). open-unlearning divides the sums over tokens
    by the wrong rows' lengths where they differ.

    Args:
        steering: c, > 0, to suit the norm of the layer's states (6.5 for Zephyr-7B in the paper; 2 on TOFU in
            open-unlearning).
        layer: number of the decoder layer, counted from 0, or as a float a share of the depth: 0.22 is
            layer 7 of 32 (7 in the paper).
        seed: of u.
    """

    def __init__(self, steering: float = 6.5, layer: int | float = 7, seed: int = 0) -> None:
        super().__init__(layer)
        check_number("RMU.steering", steering, above=0)
        self.steering = steering
        self.seed = seed
        self._directions: dict[tuple[int, torch.device], Tensor] = {}

    def direction(self, width: int, device: torch.device) -> Tensor:
        """Return u, [d] float32."""
        if (width, device) not in self._directions:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.rand(width, generator=generator, dtype=torch.float32)
            self._directions[width, device] = (drawn / drawn.norm()).to(device)
        return self._directions[width, device]

    def _away(self, states: Tensor, reference_states: Tensor | None) -> Tensor:
        return states - self.steering * self.direction(states.shape[-1], states.device)


class RMURetain(_ActivationDistance):
    r"""Loss that keeps the hidden states of one layer where they are in the reference; for retain rows.

        L = mean_s (1 / n_s) sum_t ||h_t - h_ref_t||^2 / d

    At policy = reference it is 0, and so is its gradient. Source and differences: see RMU; the paper's
    factor alpha is model.retain_weight here.

    Args:
        layer: as in RMU, and the same one in the paper.
    """

    uses_reference: ClassVar[bool] = True

    def __init__(self, layer: int | float = 7) -> None:
        super().__init__(layer)

    def _away(self, states: Tensor, reference_states: Tensor | None) -> Tensor:
        assert reference_states is not None
        return states - reference_states
