"""What was seen of a model on one row, before any metric is made of it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dipo_pl.batch import EvaluationBatch
from dipo_pl.models.answer_scores import TokenScores


@dataclass(frozen=True)
class Observation:
    """One row of an evaluation set as a model takes it.

    Attributes:
        nll: nats per token of each answer, EOS included.
        targets, predictions: [n] the tokens of the original answer, what closes it left out, and the likeliest ones.
        log_probabilities: [n] of the targets, nats.
        means, variances: [n] of log p under the model's distribution p at each of these tokens.
        generation: the model's own answer; None where none was generated.
        gradient_norm: see `dipo_pl.models.gradient_norm`; None where it was not asked for.
    """

    nll: tuple[float, ...]
    targets: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.int64]
    log_probabilities: npt.NDArray[np.float32]
    means: npt.NDArray[np.float32]
    variances: npt.NDArray[np.float32]
    generation: str | None = None
    gradient_norm: float | None = None


def observations(batch: EvaluationBatch, nll: Tensor, tokens: TokenScores) -> list[Observation]:
    """What was seen of each of a batch's rows.

    Args:
        nll: [S] nats per token of all answers.
        tokens: of the original answers' tokens, what closes them included.
    """
    columns = {name: column.cpu().numpy() for name, column in vars(tokens).items()}
    answers = nll.view(len(batch.rows), -1).tolist()
    found, start = [], 0
    for values, place, closing in zip(answers, batch.originals, batch.closing, strict=True):
        end = start + batch.answers.lengths[place]
        kept = {name: column[start : end - closing] for name, column in columns.items()}
        found.append(Observation(tuple(values), **kept))
        start = end
    return found
