"""A figure of the losses of right and wrong answers."""

import torch
from torch import Tensor

from dipo_pl.metrics.row_metric import RowMetric


class AnswerMetric(RowMetric):
    """Collects the loss of each row's right answer and of its K wrong ones: values [N, 1 + K]."""

    def update(self, rows: Tensor, correct_nll: Tensor, wrong_nll: Tensor) -> None:
        """Add a batch.

        Args:
            rows: [R] int64, the positions of the examples in their set.
            correct_nll: [R] nats per token.
            wrong_nll: [R, K] nats per token, K >= 1 and the same in every batch.
        Raises: ValueError: shapes disagree, or K is 0 or changes.
        """
        if wrong_nll.ndim != 2 or correct_nll.shape != wrong_nll.shape[:1] or wrong_nll.shape[1] == 0:
            raise ValueError(
                "correct_nll and wrong_nll must have shapes [R] and [R, K], K >= 1, got "
                f"{list(correct_nll.shape)} and {list(wrong_nll.shape)}; pass the wrong answers of each right one"
            )
        self.collected.update(rows, torch.cat([correct_nll.unsqueeze(1), wrong_nll], dim=1))
