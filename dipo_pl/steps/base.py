"""Base of step schemes, which make the gradient that the optimizer gets."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

from torch import Tensor, nn

from dipo_pl.batch import Batch
from dipo_pl.losses.engine import JointObjective

# Returns the sum of the losses on the sections of a batch, each times the weight of its name, and of their entropy terms.
Evaluate = Callable[[Batch, Mapping[str, float]], JointObjective]


class StepScheme(ABC):
    """Way from the losses of an optimizer step's micro-batches to the gradient that clipping and the optimizer get.

    For each micro-batch, `objective` and then `backward` are called; after those of the last one, `finish`. Whatever is
    accumulated, scaled or rounded in between is as it is without a scheme.

    Attributes:
        needs_retain_loss: whether the scheme does nothing without a retain loss.
        separate: whether the scheme keeps the gradients of forget and retain loss apart, and averages them over ranks
            itself.
    """

    needs_retain_loss: ClassVar[bool] = False
    separate: ClassVar[bool] = True

    def check(self, weights: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Warn of trained weights, by name, that the scheme does little with; nothing by default. A collective of shards."""

    @abstractmethod
    def prepare(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Receive the trained weights by name, and forget what is left of another training."""

    @abstractmethod
    def objective(self, evaluate: Evaluate, batch: Batch, weights: Mapping[str, float]) -> JointObjective:
        """Return the weighted sum of a micro-batch's losses, at the weights as they are.

        Args:
            evaluate: computes losses of a batch.
            batch: forward passes are of this batch or of some of its sections.
            weights: factor on the losses of `forget`, which is 1, and of `retain`; constant over the step.
        """

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the last objective.

        Args:
            loss: its loss times factors that are the same for all sections, such as a loss scaler's.
        """

    @abstractmethod
    def finish(self, evaluate: Evaluate, ranks: int) -> dict[str, Tensor]:
        """Leave the gradient of the whole step, over all ranks, as `.grad` of the trained weights.

        A collective with more than one rank.

        Args:
            evaluate: as in `objective`.
            ranks: number of processes with rows of their own.

        Returns:
            Scalars to be logged, by name.
        """
