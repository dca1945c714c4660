"""What generated answers share with the true ones, as torchmetrics."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dipo_pl.metrics.functional import rouge_l_f1, rouge_l_recall
from dipo_pl.metrics.row_metric import RowMetric


class RougeLRecall(RowMetric):
    """The mean `rouge_l_recall` of a set.

    Args:
        kwargs: those of `torchmetrics.Metric`.
    """

    higher_is_better = True

    def update(self, rows: Tensor, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Add a batch.

        Args:
            rows: [R] int64, the positions of the examples in their set.
            predictions, references: R generated and true answers.
        Raises: ValueError: the lengths differ, or an entry is not a string.
        """
        self.collected.update(rows, rouge_l_recall(predictions, references).unsqueeze(1))


class RougeLF1(RowMetric):
    """The mean `rouge_l_f1` of a set.

    Args:
        stemmer: as `rouge_l_f1` takes it.
        kwargs: those of `torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(self, stemmer: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stemmer = stemmer

    def update(self, rows: Tensor, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Add a batch.

        Args:
            rows: [R] int64, the positions of the examples in their set.
            predictions, references: R generated and true answers.
        Raises: ValueError: the lengths differ, or an entry is not a string.
        """
        self.collected.update(rows, rouge_l_f1(predictions, references, self.stemmer).unsqueeze(1))
