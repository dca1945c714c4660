"""What generated answers recall of the true ones, as a torchmetric."""

from collections.abc import Sequence

from torch import Tensor

from dipo_pl.metrics.functional import rouge_l_recall
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
