"""The probability of the true answers, as torchmetrics."""

from typing import Any

from torch import Tensor

from dipo_pl.metrics.answer_metric import AnswerMetric
from dipo_pl.metrics.functional import answer_probability, option_probability
from dipo_pl.metrics.functional._inputs import log_epsilon
from dipo_pl.metrics.row_metric import RowMetric


class AnswerProbability(RowMetric):
    """The mean `answer_probability` of a set.

    Args:
        kwargs: those of `torchmetrics.Metric`.
    """

    higher_is_better = True

    def update(self, rows: Tensor, nll: Tensor) -> None:
        """Add a batch.

        Args:
            rows: [R] int64, the positions of the examples in their set.
            nll: [R] nats per token of the true answers.
        Raises: ValueError: shapes disagree.
        """
        self.collected.update(rows, nll.unsqueeze(-1))

    def score(self, values: Tensor) -> Tensor:
        return answer_probability(values[:, 0])


class OptionProbability(AnswerMetric):
    """The mean `option_probability` of a set.

    Args:
        epsilon: as in `option_probability`.
        kwargs: those of `torchmetrics.Metric`.
    Raises: ValueError: epsilon is negative or not finite.
    """

    higher_is_better = True

    def __init__(self, epsilon: float = 0.0, **kwargs: Any) -> None:
        log_epsilon(epsilon)
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def score(self, values: Tensor) -> Tensor:
        return option_probability(values[:, 0], values[:, 1:], self.epsilon)
