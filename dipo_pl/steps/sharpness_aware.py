"""Sharpness-aware minimization of the forget loss, against relearning."""

from collections.abc import Mapping

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from dipo_pl.batch import Batch
from dipo_pl.errors import check_number
from dipo_pl.losses.engine import JointObjective
from dipo_pl.models.weight_sample import MOVABLE, movable_share, sampled
from dipo_pl.steps.base import Evaluate
from dipo_pl.steps.gradient import Gradient
from dipo_pl.steps.separate import SeparateStep


class SharpnessAware(SeparateStep):
    r"""Step scheme that takes the forget gradient where the forget loss is higher, at a distance rho from the weights.

        epsilon = rho g_f(theta) / ||g_f(theta)||
        g = g_f(theta + epsilon) + lambda g_r(theta)

    with g_f and g_r the gradients of forget and retain loss over the whole step, all its micro-batches and ranks, the norm
    over all trained weights, and lambda = `model.retain_weight`. Where g_f is 0, epsilon is 0. The weights are then set
    back bitwise. Logged losses are those at theta.

    A step has a second forward and backward pass over the forget rows, which wait for it: epsilon is known only after the
    last micro-batch. In memory there are, beside `.grad`, the retain gradient and a copy of the trained weights. With
    dropout the second pass draws anew.

    Source: Fan et al. 2025, arXiv:2502.05374, "Towards LLM unlearning resilient to relearning attacks"; rho .01 as its
    authors' settings for MUSE. Differs: their code takes one batch a step, and subtracts epsilon again.

    Args:
        rho: distance, > 0.
    """

    def __init__(self, rho: float = 0.01) -> None:
        check_number("SharpnessAware.rho", rho, above=0)
        self.rho = rho

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Warn where rounding leaves most of the weights where they are."""
        half = {name: each for name, each in weights.items() if each.dtype == torch.bfloat16}
        if not half:
            return
        distance = self.rho / sum(each.numel() for each in weights.values()) ** 0.5
        if (share := movable_share(sampled(half).values(), distance)) < MOVABLE:
            rank_zero_warn(
                f"the trained weights are bfloat16: SharpnessAware moves a weight by about {distance:.2g}, which changes "
                f"{share:.1%} of them: set model.policy.dtype to float32 and trainer.precision to 32-true or a mixed one "
                "(--config bf16.yaml), or raise model.step.rho"
            )

    def prepare(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Receive the trained weights by name, and forget what is left of another training."""
        super().prepare(weights)
        self._batch: Batch | None = None
        self._passed: list[tuple[Batch, Tensor]] = []

    def objective(self, evaluate: Evaluate, batch: Batch, weights: Mapping[str, float]) -> JointObjective:
        """Return the weighted sum of a micro-batch's losses, and keep its forget rows for the second pass."""
        self._batch = batch.only(["forget"])
        return super().objective(evaluate, batch, weights)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the last objective's losses to those of the step."""
        assert self._batch is not None
        self._passed.append((self._batch, self.factor(loss)))
        super().backward(loss)

    def finish(self, evaluate: Evaluate, ranks: int) -> dict[str, Tensor]:
        """Leave the gradient of the whole step as `.grad`; see the class."""
        forget, retain = self.gradients.pop("forget").average(ranks), self.gradients.pop("retain", None)
        passed, self._passed = self._passed, []
        norm = forget.dot(forget).sqrt()
        gradient = Gradient(self.weights)
        before = forget.move_weights(torch.where(norm > 0, self.rho / norm, 0.0))
        del forget
        try:
            for batch, factor in passed:
                loss = evaluate(batch, {"forget": 1.0}).loss
                with gradient.collecting():
                    loss.backward(factor)
        finally:
            gradient.restore(before)
        if retain is not None:
            gradient.add(retain, norm.new_tensor(self.retain_factor))
        gradient.average(ranks).install()
        return {}
