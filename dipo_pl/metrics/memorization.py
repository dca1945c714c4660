"""How much of the answers a model would say by itself, as torchmetrics."""

from torch import Tensor

from dipo_pl.metrics.functional import exact_memorization, extraction_strength
from dipo_pl.metrics.functional._inputs import Answers
from dipo_pl.metrics.row_metric import RowMetric


class ExactMemorization(RowMetric):
    """The mean `exact_memorization` of a set.

    Args:
        kwargs: those of `torchmetrics.Metric`.
    """

    of_answers = staticmethod(exact_memorization)

    def update(self, rows: Tensor, predictions: Answers, targets: Answers) -> None:
        """Add a batch.

        Args:
            rows: [R] int64, the positions of the examples in their set.
            predictions, targets: R answers each, as `exact_memorization` takes them.
        Raises: ValueError: shapes disagree, an answer has no tokens, or an id is negative or no whole number.
        """
        self.collected.update(rows, self.of_answers(predictions, targets).unsqueeze(1))


class ExtractionStrength(ExactMemorization):
    """The mean `extraction_strength` of a set.

    Args:
        kwargs: those of `torchmetrics.Metric`.
    """

    of_answers = staticmethod(extraction_strength)
