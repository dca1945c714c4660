"""Exact match: whether a generated answer is the true one, with nothing before or after it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dipo_pl.metrics.base import EvaluationMetric, MeasuredSet
from dipo_pl.metrics.inputs import check_lengths, check_texts
from dipo_pl.metrics.observations import Observations

KNOWLEDGE = "_knowledge"


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> Tensor:
    """Return 1 where a generated answer is the true one, else 0; case and the spaces around both do not count.

    Source: the evaluation script of SemEval-2025 task 4 (LUME, arXiv:2502.15097, "knowledge").

    Args:
        predictions: N generated answers, without prompt and special tokens.
        references: N true answers.

    Returns:
        [N] float64, 0 or 1.

    Raises:
        ValueError: the lengths differ, or an entry is no string.
    """
    check_texts("predictions", predictions)
    check_texts("references", references)
    check_lengths("predictions", predictions, "references", references)
    pairs = zip(predictions, references, strict=True)
    return torch.tensor([_plain(said) == _plain(true) for said, true in pairs], dtype=torch.float64)


class ExactMatch(EvaluationMetric):
    """Metric `exact_match` of sets whose name ends in `_knowledge`: the share of answers that are exactly the true ones."""

    inputs = ("generation",)

    def applies(self, measured: MeasuredSet) -> bool:
        """Return True for LUME's sets of questions."""
        return super().applies(measured) and measured.name.endswith(KNOWLEDGE)

    def per_row(self, seen: Observations) -> dict[str, Tensor]:
        """Return `exact_match`."""
        return {"exact_match": exact_match(seen.generation, self.measured.references)}


def _plain(text: str) -> str:
    return text.strip().lower()
