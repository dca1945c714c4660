"""The factor lambda on the retain loss: fixed, or adapted so that the retain loss stays below a bound."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from dipo_pl.errors import TrainingError, check_count, check_number


class RetainWeight(ABC):
    """Factor on the retain loss.

    Attributes:
        value: the factor for the next batch.
        needs_retain_loss: whether the factor is computed from the retain loss.
    """

    value: float
    needs_retain_loss: ClassVar[bool] = False

    @property
    @abstractmethod
    def state(self) -> dict[str, float]:
        """Values that change during training, by name: logged, and saved in checkpoints."""

    @abstractmethod
    def load(self, checkpoint: Mapping[str, float]) -> None:
        """Restore `state` from a checkpoint."""

    @abstractmethod
    def observe(self, retain_loss: Tensor, weight: float = 1.0) -> None:
        """Receive a micro-batch's retain loss, a scalar, and its weight in the mean over the optimizer step."""

    @abstractmethod
    def update(self, epoch: int, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Adapt the factor at the end of an optimizer step.

        Args:
            epoch: counted from 0.
            over_ranks: takes the mean of a tensor over ranks; called on none or on all of them.
        """


class FixedWeight(RetainWeight):
    """Retain weight that does not change; a number in a config makes one.

    Args:
        value: lambda, >= 0.
    """

    def __init__(self, value: float = 1.0) -> None:
        check_number("model.retain_weight", value, minimum=0)
        self.value = value

    @property
    def state(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def load(self, checkpoint: Mapping[str, float]) -> None:
        """Restore nothing."""

    def observe(self, retain_loss: Tensor, weight: float = 1.0) -> None:
        """Ignore the loss."""

    def update(self, epoch: int, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Change nothing."""


class DualWeight(RetainWeight):
    r"""Retain weight that is the multiplier lambda of the constraint: retain loss <= epsilon.

        L = forget loss + lambda (retain loss - epsilon)
        lambda <- max(0, lambda + step (retain loss - epsilon))   after each optimizer step

    lambda grows while the retain loss is above epsilon and shrinks while it is below, down to 0, where only the
    forget loss is left. The retain loss of an update is that of the step's own batch: the mean over its
    micro-batches and over ranks, weighted as their losses are.

    Source: Entesari et al. 2025, arXiv:2506.05314, primal-dual unlearning (PDU); the defaults are its authors'
    settings for TOFU. Differs: their version in open-unlearning updates after each micro-batch, and on each
    rank by its own loss.

    Args:
        initial: lambda at the start, >= 0.
        epsilon: the bound, in the retain loss's own unit; a little above its value before training.
        step: step size of the multiplier, > 0.
        warmup_epochs: epochs before the first update, >= 0.
    """

    needs_retain_loss: ClassVar[bool] = True

    def __init__(
        self, initial: float = 100.0, epsilon: float = 0.3, step: float = 5.0, warmup_epochs: int = 5
    ) -> None:
        check_number("DualWeight.initial", initial, minimum=0)
        check_number("DualWeight.epsilon", epsilon)
        check_number("DualWeight.step", step, above=0)
        check_count("DualWeight.warmup_epochs", warmup_epochs, 0)
        self.value = initial
        self.epsilon = epsilon
        self.step = step
        self.warmup_epochs = warmup_epochs
        self._observed: list[Tensor] = []

    @property
    def state(self) -> dict[str, float]:
        """The multiplier."""
        return {"retain_weight": self.value}

    def load(self, checkpoint: Mapping[str, float]) -> None:
        """Restore the multiplier."""
        self.value = checkpoint.get("retain_weight", self.value)

    def observe(self, retain_loss: Tensor, weight: float = 1.0) -> None:
        """Keep the loss until the step ends."""
        self._observed.append(torch.stack([weight * retain_loss.detach(), retain_loss.new_tensor(weight)]))

    def update(self, epoch: int, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Take one step of the multiplier; raise TrainingError if the retain loss is not finite."""
        if epoch >= self.warmup_epochs:
            weighted, weight = over_ranks(torch.stack(self._observed).sum(0)).tolist()
            retain_loss = weighted / weight
            # max(0, NaN) is 0: the retain loss would be dropped without a word.
            if not math.isfinite(retain_loss):
                raise TrainingError(
                    f"the retain loss is {retain_loss}, so DualWeight cannot be updated: lower the learning rate or "
                    "model.retain_weight.step"
                )
            self.value = max(0.0, self.value + self.step * (retain_loss - self.epsilon))
        self._observed.clear()
