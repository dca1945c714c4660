"""Gradient-rectified unlearning (GRU): a forget gradient that does not work against the retain loss."""

from typing import ClassVar

import torch
from torch import Tensor

from dipo_pl.steps.base import Evaluate
from dipo_pl.steps.separate import SeparateStep


class GradientRectified(SeparateStep):
    r"""Step scheme that removes from the forget gradient what would raise the retain loss.

        g_f <- g_f - (<g_f, g_r> / ||g_r||^2) g_r   where <g_f, g_r> < 0
        g = g_f + lambda g_r

    with g_f and g_r the gradients of forget and retain loss over the whole step, all its micro-batches and ranks; inner
    products are over all trained weights, and lambda = `model.retain_weight`. With lambda 0 the retain rows only rectify.
    Logs train/gradient_cosine, <g_f, g_r> / (||g_f|| ||g_r||) before.

    A retain loss that compares with the reference (ReferenceKL, RMURetain) has no gradient in the first step, or one of
    rounding alone, so that rectifying means nothing there.

    In memory there is, beside `.grad`, a second gradient.

    Source: Wang et al. 2025, arXiv:2503.09117, GRU. Differs: its authors' code rectifies by a moving average of the retain
    gradient over steps (weight 0.8 on the newest by default); its variants named gd rectify the sum of both gradients, those
    named +ce add the retain gradient afterwards, as here.
    """

    needs_retain_loss: ClassVar[bool] = True

    def finish(self, evaluate: Evaluate, ranks: int) -> dict[str, Tensor]:
        """Leave the gradient of the whole step as `.grad`; see the class."""
        forget, retain = (self.gradients.pop(name).average(ranks) for name in ("forget", "retain"))
        product, square = forget.dot(retain), retain.dot(retain)
        norms = (square * forget.dot(forget)).sqrt()
        against = torch.where((product < 0) & (square > 0), product / square, 0.0)
        forget.add(retain, self.retain_factor - against).install()
        return {"gradient_cosine": torch.where(norms > 0, product / norms, 0.0)}
