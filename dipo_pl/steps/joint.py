"""Step scheme that takes the gradient of the weighted sum of both losses."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from dipo_pl.batch import Batch
from dipo_pl.losses.engine import JointObjective
from dipo_pl.steps.base import Evaluate, StepScheme


class JointStep(StepScheme):
    r"""Step scheme g = g_f + lambda g_r from one forward and one backward pass over forget and retain rows together.

    g_f and g_r are the gradients of the forget loss and of the retain loss, lambda is `model.retain_weight`.
    """

    separate: ClassVar[bool] = False

    def prepare(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Do nothing."""

    def objective(self, evaluate: Evaluate, batch: Batch, weights: Mapping[str, float]) -> JointObjective:
        """Return the weighted sum of a micro-batch's losses, from one forward pass."""
        return evaluate(batch, weights)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the weighted sum to `.grad`."""
        loss.backward()

    def finish(self, evaluate: Evaluate, ranks: int) -> dict[str, Tensor]:
        """Do nothing: `.grad` has been accumulated, and DDP or FSDP2 has averaged it."""
        return {}
