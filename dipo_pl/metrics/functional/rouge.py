"""How much of a reference answer a generated one has, word by word."""

import functools
import re
from collections.abc import Sequence

import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor

from dipo_pl.metrics.functional._inputs import check_texts

_NEXT_QUESTION = re.compile(r"\n\n|\nQuestion|Question:")


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
    return _scores("recall", predictions, references, stemmer=True)


def rouge_l_f1(predictions: Sequence[str], references: Sequence[str], stemmer: bool = False) -> Tensor:
    r"""2 P R / (P + R), P = LCS(prediction, reference) / |prediction|, R = LCS(prediction, reference) / |reference|.

    In words, lower case; 0 where no word is shared. What a prediction adds costs precision, so that a text that
    runs on scores lower than in `rouge_l_recall`.

    Source: Lin, "ROUGE", 2004, by Google's `rouge_score`; MUSE, arXiv:2407.06460, "VerbMem" and "KnowMem", whose
    code compares words as they are; open-unlearning compares their stems.

    Args:
        predictions: N generated answers, without prompt and special tokens.
        references: N true answers.
        stemmer: compare Porter's stems of words of more than three letters.
    Returns: [N] float64, in [0, 1].
    Raises: ValueError: the lengths differ, or an entry is not a string.
    """
    return _scores("fmeasure", predictions, references, stemmer)


def before_next_question(text: str) -> str:
    r"""A generated answer as far as the first "\n\n", "\nQuestion" or "Question:", where a few-shot model goes on.

    Nothing is stripped: a text that starts with one of them leaves an empty answer.

    Source: MUSE, https://github.com/jaechan-repo/muse_bench, `knowmem/get_rouge_qa.py`.
    """
    return _NEXT_QUESTION.split(text, maxsplit=1)[0]


def _scores(part: str, predictions: Sequence[str], references: Sequence[str], stemmer: bool) -> Tensor:
    check_texts("predictions", predictions)
    check_texts("references", references)
    if len(predictions) != len(references):
        raise ValueError(
            f"predictions and references must pair up, got {len(predictions)} and {len(references)}; "
            "pass one prediction for each reference"
        )
    score = _scorer(stemmer).score
    found = [
        getattr(score(target=reference, prediction=prediction)["rougeL"], part)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return torch.tensor(found, dtype=torch.float64)


@functools.cache
def _scorer(stemmer: bool) -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=stemmer)
