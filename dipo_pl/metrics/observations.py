"""Observations: outputs of a model for rows of an evaluation set, before any metric is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dipo_pl.batch import EvaluationBatch
from dipo_pl.models.answer_scores import TokenScores, answer_scores
from dipo_pl.models.head import OutputHead
from dipo_pl.models.prompt_packing import row_states

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
        greedy: for each row the first tokens of the answer that the model generates, at least one: as long as they are those
            of the original answer, the next one is known from its most likely token. No input of metrics.
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
    greedy: Sequence[list[int]] = ()
    generation: Sequence[str] = ()
    gradient_norm: Tensor = NOTHING

    @classmethod
    def of_model(
        cls, model: PreTrainedModel, batch: EvaluationBatch, token_budget: int | None = None
    ) -> "Observations":
        """Return what a model gives for the answers of a batch; nothing is generated.

        Args:
            model: a causal language model.
            batch: R rows with all their answers, on the model's device.
            token_budget: positions whose logits exist at a time; None is `default_token_budget`.
        """
        answers = batch.answers
        first = torch.tensor([row in batch.originals for row in range(len(answers.lengths))])
        detailed = torch.repeat_interleave(first, torch.tensor(answers.lengths)).to(answers.targets.device)
        states, places = row_states(model, answers, len(batch.rows))
        nll, tokens = answer_scores(
            states,
            answers.targets,
            answers.lengths,
            OutputHead.of(model).gathered(),
            detailed,
            token_budget,
            places,
        )
        return cls.of(batch, nll, tokens)

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
        greedy = [
            _greedy(*columns)
            for columns in zip(tokens.predictions.split(lengths), tokens.targets.split(lengths), strict=True)
        ]
        return cls(batch.rows, nll.view(len(batch.rows), -1), **by_row, greedy=greedy)


def _greedy(predictions: Tensor, targets: Tensor) -> list[int]:
    """Return the predictions up to the first that is not the target: after it they follow another text."""
    agreed = int((predictions == targets).int().cumprod(0).sum())
    found: list[int] = predictions[: agreed + 1].tolist()
    return found
