"""Cross-entropy: what fine-tuning minimises, and the plain retain loss (GradDiff's, NPO + CE's)."""

from typing import ClassVar, Literal

from dipo_pl.losses.log_probability import LogProbabilityLoss


class CrossEntropy(LogProbabilityLoss):
    r"""Keeps answers likely; what fine-tuning minimises, for retain rows.

        L = - mean over answer tokens of log p(y_t), in nats.

    A token mean: long answers weigh more, and micro-batches of unequal token counts average to another
    value than the whole batch.
    """

    mean_over: ClassVar[Literal["sequences", "tokens"]] = "tokens"
    sign: ClassVar[float] = -1.0
