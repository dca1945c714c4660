"""Forget Quality, as a torchmetric."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dipo_pl.metrics.answer_metric import AnswerMetric
from dipo_pl.metrics.functional import ForgetQuality, forget_quality, log_truth_ratio
from dipo_pl.metrics.functional._inputs import Numbers, as_float64


class ForgetQualityTest(AnswerMetric):
    """`forget_quality` of a forget set against a model that never saw it.

    `per_row` gives the logarithms of the truth ratios.

    Args:
        retain: [N] log truth ratios of a model trained on the retain set alone, one for each row of the forget set.
        ratio: `log_truth_ratio`, or another way to make it, such as
            `functools.partial(log_truth_ratio, epsilon=1e-10)`; `retain` must have been made the same way.
        kwargs: those of `torchmetrics.Metric`.
    Raises: ValueError: retain is not [N].
    """

    def __init__(
        self, retain: Numbers, ratio: Callable[[Tensor, Tensor], Tensor] = log_truth_ratio, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.retain = as_float64("retain", retain, "N")
        self.ratio = ratio

    def score(self, values: Tensor) -> Tensor:
        return self.ratio(values[:, 0], values[:, 1:])

    def compute(self) -> ForgetQuality:
        """The test over all processes' rows.

        Raises: ValueError: the rows are not those of the retain model, a row is missing, or as `forget_quality`.
        """
        rows, ratios = self.per_row()
        if not torch.equal(rows, torch.arange(len(self.retain))):
            raise ValueError(
                f"unlearned and retain must cover the same forget set, got {len(rows)} rows ({int(rows[0])} to "
                f"{int(rows[-1])}) and {len(self.retain)}; measure every row of the set, by its position"
            )
        return forget_quality(ratios, self.retain)
