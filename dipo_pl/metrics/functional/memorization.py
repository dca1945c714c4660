"""How much of an answer a model would say by itself, when each token is judged after the true ones before it.

The last labelled token of an answer is usually the end of sequence that closes it, which any answer shares: the
caller leaves it out. open-unlearning drops the last labelled token always, also where it is a real one.
"""

import torch
from torch import Tensor

from dipo_pl.metrics.functional._inputs import Answers, as_token_ids, check_pairs


def exact_memorization(predictions: Answers, targets: Answers) -> Tensor:
    r"""1/n sum_t [argmax p(. | y_<t) = y_t]: the share of an answer's tokens that are the likeliest ones.

    Source: Tirumala et al., arXiv:2205.10770, "exact memorization"; as open-unlearning's `exact_memorization`.

    Args:
        predictions: N answers, each of n_i >= 1 token ids: the likeliest token at each position.
        targets: the answers' own tokens, in the same shapes, without the closing end of sequence.
    Returns: [N] float64 on the CPU, in [0, 1].
    Raises: ValueError: shapes disagree, an answer has no tokens, or an id is negative or no whole number.
    """
    return torch.tensor([hit.double().mean() for hit in _hits(predictions, targets)], dtype=torch.float64)


def extraction_strength(predictions: Answers, targets: Answers) -> Tensor:
    r"""1 - k/n, k the length of the shortest prefix after which all likeliest tokens are the answer's own.

    Source: Carlini et al., arXiv:2012.07805, in the form of Wang et al., arXiv:2406.09179, with one pass over the
    true answer in place of generation. Differs: an answer whose last token is missed, and so one that is all wrong,
    has k = n and scores 0; open-unlearning stops at k = n - 1 and gives 1/n.

    Args:
        predictions, targets: as for `exact_memorization`.
    Returns: [N] float64 on the CPU, in [0, 1].
    Raises: ValueError: as `exact_memorization`.
    """
    strengths = []
    for hit in _hits(predictions, targets):
        misses = (~hit).nonzero()
        prefix = int(misses[-1]) + 1 if len(misses) else 0
        strengths.append(1 - prefix / len(hit))
    return torch.tensor(strengths, dtype=torch.float64)


def _hits(predictions: Answers, targets: Answers) -> list[Tensor]:
    predicted, true = as_token_ids("predictions", predictions), as_token_ids("targets", targets)
    check_pairs("predictions", predicted, "targets", true)
    return [p == t for p, t in zip(predicted, true, strict=True)]
