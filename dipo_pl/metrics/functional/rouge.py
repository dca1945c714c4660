"""How much of a reference answer a generated one recalls, word by word."""

import functools
from collections.abc import Sequence

import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor

from dipo_pl.metrics.functional._inputs import check_texts


def rouge_l_recall(predictions: Sequence[str], references: Sequence[str]) -> Tensor:
    r"""LCS(prediction, reference) / |reference|, in words, lower case and Porter-stemmed.

    Google's tokenizer keeps a-z and 0-9 only, so a reference in another script scores 0. What a
    prediction adds costs nothing.

    Source: Lin, "ROUGE", 2004, by Google's `rouge_score`; TOFU, arXiv:2401.06121, section 2.2, "ROUGE".

    Args:
        predictions: N generated answers, without prompt and special tokens.
        references: N true answers.
    Returns: [N] float64, in [0, 1].
    Raises: ValueError: the lengths differ, or an entry is not a string.
    """
    check_texts("predictions", predictions)
    check_texts("references", references)
    if len(predictions) != len(references):
        raise ValueError(
            f"predictions and references must pair up, got {len(predictions)} and {len(references)}; "
            "pass one prediction for each reference"
        )
    score = _scorer().score
    recalls = [
        score(target=reference, prediction=prediction)["rougeL"].recall
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return torch.tensor(recalls, dtype=torch.float64)


@functools.cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)
