"""Memorization: the share of an answer that a model predicts itself, each token after the true tokens before it.

The last labeled token of an answer is usually the end of sequence that closes it, which every answer has: the caller
leaves it out. open-unlearning always drops the last labeled token, also where it belongs to the answer.
"""

import torch
from torch import Tensor

from dipo_pl.metrics.base import EvaluationMetric
from dipo_pl.metrics.inputs import Answers, as_token_ids, check_tokens
from dipo_pl.metrics.observations import Observations


def exact_memorization(predictions: Answers, targets: Answers) -> Tensor:
    r"""Return 1/n sum_t [argmax p(. | y_<t) = y_t], the share of an answer's tokens that are the most likely ones.

    Source: Tirumala et al., arXiv:2205.10770, "exact memorization"; as open-unlearning's `exact_memorization`.

    Args:
        predictions: N answers, each of n_i >= 1 token ids: the most likely token at each position.
        targets: the answers' own tokens, in the same shapes, without the closing end of sequence.

    Returns:
        [N] float64 on the CPU, in [0, 1].

    Raises:
        ValueError: shapes disagree, an answer has no tokens, or an id is negative or no whole number.
    """
    return torch.tensor([hit.double().mean() for hit in _hits(predictions, targets)], dtype=torch.float64)


def extraction_strength(predictions: Answers, targets: Answers) -> Tensor:
    r"""Return 1 - k/n, k the length of the shortest prefix after which all most likely tokens are the answer's own.

    Source: Carlini et al., arXiv:2012.07805, in the form of Wang et al., arXiv:2406.09179, with one pass over the
    true answer in place of generation. Differs: an answer whose last token is wrong has k = n and scores 0;
    open-unlearning stops at k = n - 1 and gives 1/n.

    Arguments, shapes and errors are those of `exact_memorization`.
    """
    strengths = []
    for hit in _hits(predictions, targets):
        misses = (~hit).nonzero()
        prefix = int(misses[-1]) + 1 if len(misses) else 0
        strengths.append(1 - prefix / len(hit))
    return torch.tensor(strengths, dtype=torch.float64)


class Memorization(EvaluationMetric):
    """Metrics `exact_memorization` and `extraction_strength` of the original answers."""

    inputs = ("predictions", "targets")

    def per_row(self, seen: Observations) -> dict[str, Tensor]:
        """Return `exact_memorization` and `extraction_strength`."""
        strength = extraction_strength(seen.predictions, seen.targets)
        if self.measured.convention.extraction_floor:
            lengths = torch.tensor([len(each) for each in seen.targets], dtype=torch.float64)
            strength = strength.clamp(min=1 / lengths)
        exact = exact_memorization(seen.predictions, seen.targets)
        return {"exact_memorization": exact, "extraction_strength": strength}


def _hits(predictions: Answers, targets: Answers) -> list[Tensor]:
    predicted, true = as_token_ids("predictions", predictions), as_token_ids("targets", targets)
    check_tokens("predictions", predicted, "targets", true)
    return [p == t for p, t in zip(predicted, true, strict=True)]
