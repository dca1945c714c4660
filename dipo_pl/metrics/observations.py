"""Observations: outputs of a model for rows of an evaluation set, before any metric is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dipo_pl.batch import EvaluationBatch
from dipo_pl.models.answer_scores import TokenScores

NOTHING = torch.empty(0)


@dataclass(frozen=True)
class Observations:
    """Outputs of a model for R rows of one evaluation set; fields that no metric needs are empty.

    Attributes:
        rows: [R] int64, the positions of the rows in their set.
        nll: [R, A] nats per token of each answer, end of sequence included: the original answer and, where wrong
            answers are known, the correct answer of the truth ratio and then the wrong ones.
        targets: for each row [n] int64, the tokens of the original answer without those that close it.
        predictions: for each row [n] int64, the most likely token at each of these positions.
        log_probabilities: for each row [n], log p of the targets, nats.
        means: for each row [n], mean of log p under the model's distribution p at each of these positions.
        variances: for each row [n], variance of log p under p.
        generation: the answer that the model generates to each row.
        gradient_norm: [R], see `dipo_pl.models.gradient_norm`.
    """

    rows: Tensor
    nll: Tensor = NOTHING
    targets: Sequence[Tensor] = ()
    predictions: Sequence[Tensor] = ()
    log_probabilities: Sequence[Tensor] = ()
    means: Sequence[Tensor] = ()
    variances: Sequence[Tensor] = ()
    generation: Sequence[str] = ()
    gradient_norm: Tensor = NOTHING

    @classmethod
    def of(cls, batch: EvaluationBatch, nll: Tensor, tokens: TokenScores) -> "Observations":
        """Return the observations of a batch.

        Args:
            batch: R rows with all their answers.
            nll: [S] nats per token of all answers, row by row.
            tokens: scores of the tokens of the original answers, closing tokens included.
        """
        lengths = [batch.answers.lengths[place] for place in batch.originals]
        by_row: dict[str, Any] = {
            name: [
                row[: len(row) - closing]
                for row, closing in zip(column.split(lengths), batch.closing, strict=True)
            ]
            for name, column in vars(tokens).items()
        }
        return cls(batch.rows, nll.view(len(batch.rows), -1), **by_row)
