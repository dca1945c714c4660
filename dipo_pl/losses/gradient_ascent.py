"""Gradient ascent (GA): negated cross-entropy; with cross-entropy on retain rows it is GradDiff."""

from typing import ClassVar, Literal

from dipo_pl.losses.log_probability import LogProbabilityLoss


class GradientAscent(LogProbabilityLoss):
    r"""Loss that makes answers unlikely, without bound; for forget rows.

        L = mean over answer tokens of log p(y_t), in nats.

    Source: TOFU, arXiv:2401.06121, gradient ascent; GradDiff after Liu et al. 2022.
    """

    mean_over: ClassVar[Literal["sequences", "tokens"]] = "tokens"
