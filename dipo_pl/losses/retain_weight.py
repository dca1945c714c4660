"""The retain weight as a dual variable: the retain loss is held below a bound, not traded for forgetting."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dipo_pl.errors import InputError, TrainingError


class DualWeight:
    r"""The multiplier lambda of the constraint retain loss <= epsilon, in place of a fixed retain weight.

        L = forget loss + lambda (retain loss - epsilon)
        lambda <- max(0, lambda + step (retain loss - epsilon))   after each optimizer step

    lambda grows while the retain loss is above epsilon, and shrinks while it is below, down to 0, where nothing
    is left but forgetting. The retain loss of an update is that of the step's own batch: the mean over
    its micro-batches and over devices, weighted as their losses are.

    Source: Entesari et al. 2025, arXiv:2506.05314, primal-dual unlearning (PDU); its authors' settings for TOFU
    are the defaults. Differs: their version in open-unlearning updates after each micro-batch,
    and on each device by its own.

    Args:
        initial: lambda at the start, >= 0.
        epsilon: the bound, in the retain loss's own unit; a little above its value before training.
        step: of the multiplier, > 0.
        warmup_epochs: epochs before the first update, >= 0.
    """

    def __init__(
        self, initial: float = 100.0, epsilon: float = 0.3, step: float = 5.0, warmup_epochs: int = 5
    ) -> None:
        if not 0 <= initial < math.inf:
            raise InputError(f"DualWeight.initial must be a finite number >= 0, got {initial}")
        if not math.isfinite(epsilon):
            raise InputError(f"DualWeight.epsilon must be a finite number, got {epsilon}")
        if not 0 < step < math.inf:
            raise InputError(f"DualWeight.step must be a finite number > 0, got {step}")
        if warmup_epochs < 0:
            raise InputError(f"DualWeight.warmup_epochs must be at least 0, got {warmup_epochs}")
        self.value = initial
        self.epsilon = epsilon
        self.step = step
        self.warmup_epochs = warmup_epochs
        self._observed: list[Tensor] = []

    def observe(self, retain_loss: Tensor, weight: float = 1.0) -> None:
        """Takes in a micro-batch's retain loss, a scalar, and what it counts in the step's."""
        self._observed.append(torch.stack([weight * retain_loss.detach(), retain_loss.new_tensor(weight)]))

    def update(self, epoch: int, over_devices: Callable[[Tensor], Tensor]) -> None:
        """Ends an optimizer step.

        Args:
            epoch: counted from 0.
            over_devices: the mean of a tensor over devices; called in none or all of them.
        Raises:
            TrainingError: the retain loss is not finite.
        """
        if epoch >= self.warmup_epochs:
            weighted, weight = over_devices(torch.stack(self._observed).sum(0)).tolist()
            retain_loss = weighted / weight
            if not math.isfinite(retain_loss):
                raise TrainingError(
                    f"the retain loss is {retain_loss}, and the DualWeight on it can follow no such number: lower "
                    "the learning rate or model.retain_weight.step"
                )
            self.value = max(0.0, self.value + self.step * (retain_loss - self.epsilon))
        self._observed.clear()
