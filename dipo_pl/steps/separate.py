"""Base of step schemes that need the gradients of forget and retain loss apart."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dipo_pl.batch import Batch
from dipo_pl.losses.engine import JointObjective
from dipo_pl.steps.base import Evaluate, StepScheme
from dipo_pl.steps.gradient import Gradient


class SeparateStep(StepScheme):
    """Step scheme that accumulates the gradients of forget and retain loss apart, over all micro-batches of a step.

    Forget and retain rows have a forward and a backward pass each, which together take as long as those of both at once. A
    second gradient is kept.

    Attributes:
        weights: the trained weights.
        gradients: by section, that of its loss times its weight and of its entropy, times the factor of the loss. With a
            weight of 0 it is that of the loss alone, which is still a direction.
        retain_factor: 1, or 0 where the retain weight is 0.
    """

    def prepare(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Receive the trained weights by name, and forget what is left of another training."""
        self.weights = list(weights.values())
        self.gradients: dict[str, Gradient] = {}
        self.retain_factor = 1.0
        self._losses: dict[str, Tensor] = {}

    def objective(self, evaluate: Evaluate, batch: Batch, weights: Mapping[str, float]) -> JointObjective:
        """Return the weighted sum of a micro-batch's losses, each from a forward pass of its own rows."""
        parts = {name: evaluate(batch.only([name]), {name: weights[name] or 1.0}) for name in batch.sections}
        self._losses = {name: each.loss for name, each in parts.items()}
        self.retain_factor = 1.0 if weights["retain"] else 0.0
        factors = {"forget": 1.0, "retain": self.retain_factor}
        loss = torch.stack([factors[name] * each for name, each in self._losses.items()]).sum()
        return JointObjective(loss, {name: each.sections[name] for name, each in parts.items()})

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the last objective's losses to those of the step."""
        factor = self.factor(loss)
        for name, own in self._losses.items():
            gradient = self.gradients.setdefault(name, Gradient(self.weights))
            with gradient.collecting():
                own.backward(factor)
        self._losses = {}

    def factor(self, loss: Tensor) -> Tensor:
        """Return the factor that the last objective has in `loss`."""
        (factor,) = torch.autograd.grad(loss, self._losses["forget"], retain_graph=True)
        return factor
