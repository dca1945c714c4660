"""The truth ratio of a set, as a torchmetric."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dipo_pl.metrics.answer_metric import AnswerMetric
from dipo_pl.metrics.functional import truth_ratio, truth_ratio_closeness


class TruthRatio(AnswerMetric):
    """The mean `truth_ratio_closeness` of a forget set, or the mean `truth_ratio_margin` of what is kept.

    `per_row` gives the ratios themselves.

    Args:
        aggregate: `truth_ratio_closeness` or `truth_ratio_margin`.
        ratio: `truth_ratio`, or another way to make it, such as `arithmetic_truth_ratio` or
            `functools.partial(truth_ratio, epsilon=1e-10)`.
        kwargs: those of `torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(
        self,
        aggregate: Callable[[Tensor], Tensor] = truth_ratio_closeness,
        ratio: Callable[[Tensor, Tensor], Tensor] = truth_ratio,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.aggregate = aggregate
        self.ratio = ratio

    def score(self, values: Tensor) -> Tensor:
        return self.ratio(values[:, 0], values[:, 1:])

    def compute(self) -> Tensor:
        """The mean of the aggregated ratios of all processes' rows: scalar float64 on the CPU.

        Raises: ValueError: as `per_row`.
        """
        return self.aggregate(self.per_row()[1]).mean()
