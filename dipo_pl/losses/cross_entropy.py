"""Cross-entropy: the loss of fine-tuning, and the plain retain loss (of GradDiff, and of NPO + CE)."""

from typing import ClassVar, Literal

from dipo_pl.losses.log_probability import LogProbabilityLoss


class CrossEntropy(LogProbabilityLoss):
    r"""Loss that keeps answers likely; for fine-tuning and for retain rows.

        L = - mean over answer tokens of log p(y_t), in nats.

    A token mean: long answers weigh more, and the mean over micro-batches of unequal token counts differs
    from the value of the whole batch.
    """

    mean_over: ClassVar[Literal["sequences", "tokens"]] = "tokens"
    sign: ClassVar[float] = -1.0
