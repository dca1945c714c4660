"""ROUGE-L: the words that a generated answer shares with the true one."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dipo_pl.metrics.base import EvaluationMetric
from dipo_pl.metrics.inputs import check_lengths, check_texts
from dipo_pl.metrics.observations import Observations
from dipo_pl.metrics.words import words_of


def rouge_l_recall(predictions: Sequence[str], references: Sequence[str]) -> Tensor:
    r"""Return LCS(prediction, reference) / |reference|, in words, lower case and Porter-stemmed.

    Words that a prediction adds cost nothing. Google's tokenizer keeps a-z and 0-9 only. Where these are less than half of
    a reference's letters and digits, both texts are split into the words of their own script (`dipo_pl.metrics.words`).

    Source: Lin, "ROUGE", 2004, by Google's `rouge_score`; TOFU, arXiv:2401.06121, section 2.2, "ROUGE".

    Args:
        predictions: N generated answers, without prompt and special tokens.
        references: N true answers.

    Returns:
        [N] float64, in [0, 1].

    Raises:
        ValueError: the lengths differ, or an entry is no string.
    """
    return _scores("recall", predictions, references, stemmer=True)


def rouge_l_f1(predictions: Sequence[str], references: Sequence[str], stemmer: bool = False) -> Tensor:
    r"""Return 2 P R / (P + R), P = LCS(prediction, reference) / |prediction|, R = LCS(prediction, reference) / |reference|.

    In words, lower case; 0 where no word is shared. Words that a prediction adds cost precision, so a text that runs
    on scores lower than in `rouge_l_recall`.

    Source: Lin, "ROUGE", 2004, by Google's `rouge_score`; MUSE, arXiv:2407.06460, "VerbMem" and "KnowMem", whose
    code compares words as they are; open-unlearning compares their stems.

    Args:
        predictions: N generated answers, without prompt and special tokens.
        references: N true answers.
        stemmer: compare Porter stems of words of more than three letters.

    Returns:
        [N] float64, in [0, 1].

    Raises:
        ValueError: the lengths differ, or an entry is no string.
    """
    return _scores("fmeasure", predictions, references, stemmer)


class Rouge(EvaluationMetric):
    """Metric `rouge_l_recall`: `rouge_l_recall` of generated answers."""

    inputs = ("generation",)

    def per_row(self, seen: Observations) -> dict[str, Tensor]:
        """Return `rouge_l_recall`."""
        return {"rouge_l_recall": rouge_l_recall(seen.generation, self.measured.references)}


def _scores(part: str, predictions: Sequence[str], references: Sequence[str], stemmer: bool) -> Tensor:
    check_texts("predictions", predictions)
    check_texts("references", references)
    check_lengths("predictions", predictions, "references", references)
    found = [
        getattr(
            _scorer(stemmer, _is_latin(reference)).score(target=reference, prediction=prediction)["rougeL"],
            part,
        )
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return torch.tensor(found, dtype=torch.float64)


@functools.cache
def _scorer(stemmer: bool, latin: bool) -> Any:
    # It imports NLTK, a second that commands which compute nothing need not wait.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=stemmer, tokenizer=None if latin else _AnyScript())


class _AnyScript:
    """Tokenizer as `rouge_score` takes it; it does not stem."""

    def tokenize(self, text: str) -> list[str]:
        return [word.key for word in words_of(text)]


def _is_latin(text: str) -> bool:
    letters = [each for each in text.lower() if each.isalnum()]
    return 2 * sum(each.isascii() for each in letters) >= len(letters)
