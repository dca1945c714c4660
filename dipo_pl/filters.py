"""Filters: which logits of a position are confident enough to enter its memory vector."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from dipo_pl.errors import InputError


class Filter(ABC):
    """Chooses tokens by a position's own logits."""

    @abstractmethod
    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The kept tokens.

        Args:
            logits: [N, V] float.
            targets: [N] the tokens to be predicted.
        Returns:
            [N, V] bool, at least one True a row. The same for logits + constant.
        """


def _share(name: str, value: float) -> float:
    if not 0 < value <= 1:
        raise InputError(f"{name} must lie in (0, 1], got {value}")
    return value


class TopFraction(Filter):
    """The highest logits, a fixed share of the vocabulary: rank(v) <= max(1, round(rate * V)).

    DiPO's filter in its rank form (arXiv:2510.04773, p = 0.05). Tokens that tie with the last kept one
    are kept too.

    Args:
        rate: share of the vocabulary, in (0, 1].
    """

    def __init__(self, rate: float = 0.05) -> None:
        self.rate = _share("TopFraction.rate", rate)

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        kept = max(1, round(self.rate * logits.shape[-1]))
        threshold = logits.topk(kept, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
        return logits >= threshold


class RelativeProbability(Filter):
    """Tokens at least `rate` times as probable as the most probable one: z_v >= max z + ln(rate).

    DiPO's filter in its relative form (arXiv:2510.04773).

    Args:
        rate: share of the largest probability, in (0, 1].
    """

    def __init__(self, rate: float = 0.05) -> None:
        self.rate = _share("RelativeProbability.rate", rate)

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits >= logits.amax(dim=-1, keepdim=True) + math.log(self.rate)


class Nucleus(Filter):
    """The fewest most probable tokens that together hold `mass` of the probability (Holtzman et al. 2020).

    Args:
        mass: cumulative probability, in (0, 1]; 1 keeps every token.
    """

    def __init__(self, mass: float = 0.9) -> None:
        self.mass = _share("Nucleus.mass", mass)

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        # Sums in float32 reach 1 before the last tokens are added.
        keep_sorted = before < (self.mass if self.mass < 1 else torch.inf)
        return torch.zeros_like(keep_sorted).scatter(-1, order, keep_sorted)


class AllOf(Filter):
    """Tokens that every one of several filters keeps; the most probable token is always among them.

    Args:
        filters: the filters to agree.
    """

    def __init__(self, filters: Sequence[Filter]) -> None:
        if not filters:
            raise InputError("AllOf.filters must name at least one filter, got none")
        self.filters = list(filters)

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        kept = self.filters[0].keep(logits, targets)
        for each in self.filters[1:]:
            kept = kept & each.keep(logits, targets)
        return kept
