"""Filters: which logits of a position are confident enough to enter its memory vector."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
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
            [N, V] bool, the same for logits + constant. A row that keeps nothing has no preference.
        """

    def places(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[K] the kept tokens' places in the flattened logits, in order."""
        kept = self.keep(logits, targets).flatten()
        if kept.device.type != "cpu":
            return kept.nonzero().squeeze(1)
        # Twice as fast as torch's.
        return torch.from_numpy(np.flatnonzero(kept.numpy()))


def _share(name: str, value: float) -> float:
    if not 0 < value <= 1:
        raise InputError(f"{name} must lie in (0, 1], got {value}")
    return value


class TopFraction(Filter):
    """The highest logits, a fixed share of the vocabulary: rank(v) <= max(1, round(rate * V)).

    DiPO's filter in its rank form (arXiv:2510.04773, p = 0.05). Tokens that tie with the last kept one
    are kept too. The question how p should suit scales and tasks is open; see EffectiveTokens.

    Args:
        rate: share of the vocabulary, in (0, 1].
    """

    def __init__(self, rate: float = 0.05) -> None:
        self.rate = _share("TopFraction.rate", rate)

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        return _at_least(logits, _highest(logits, max(1, round(self.rate * logits.shape[-1]))))


def _at_least(logits: Tensor, threshold: Tensor) -> Tensor:
    """[N, V] bool."""
    if logits.device.type != "cpu":
        return logits >= threshold
    # torch's comparison is not vectorised: 1.5 ms where NumPy's took 0.4, and 12.6 where it took 1.7 (64 x 128,256).
    return torch.from_numpy(logits.detach().numpy() >= threshold.numpy())


def _highest(logits: Tensor, rank: int) -> Tensor:
    """[N, 1] the logit of that rank, counted from 1."""
    if logits.device.type != "cpu":
        return logits.topk(rank, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    # NumPy's selection took 2.7 ms where torch's topk took 18 and kthvalue 24 (64 x 32,000, rank 1,600, one thread).
    place = logits.shape[-1] - rank
    selected = np.partition(logits.detach().numpy(), place, axis=-1)[:, place : place + 1]
    return torch.from_numpy(np.ascontiguousarray(selected))


class EffectiveTokens(Filter):
    r"""The highest logits, as many as the position hesitates between: rank(v) <= max(1, round(scale * e^H)).

    H = - sum_v p_v ln p_v is the position's entropy in nats, and e^H its perplexity: 1 where one token is
    certain, V where all are alike. Where the paper keeps a fixed share of the vocabulary (TopFraction),
    this follows the position's own uncertainty. Not from the paper, which leaves the choice of p open. Tokens
    that tie with the last kept one are kept too.

    Args:
        scale: tokens kept per effective one, > 0.
    """

    def __init__(self, scale: float = 1.0) -> None:
        if not 0 < scale < math.inf:
            raise InputError(f"EffectiveTokens.scale must be a finite number > 0, got {scale}")
        self.scale = scale

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_p = logits.log_softmax(dim=-1)
        perplexity = torch.exp(-(log_p.exp() * log_p).sum(dim=-1, keepdim=True))
        ranks = (self.scale * perplexity).round().clamp(1, logits.shape[-1]).long()
        highest = logits.topk(int(ranks.max()), dim=-1).values
        return _at_least(logits, highest.gather(-1, ranks - 1))


class TargetToken(Filter):
    """The token that stands in the text, and no other: suppresses the label alone.

    What a baseline on labels does, in DiPO's form; DiPO's own filters also reach what else the model is sure of.
    """

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, targets[:, None], True)


class RelativeProbability(Filter):
    """Tokens at least `rate` times as probable as the most probable one: z_v >= max z + ln(rate).

    DiPO's filter in its relative form (arXiv:2510.04773).

    Args:
        rate: share of the largest probability, in (0, 1].
    """

    def __init__(self, rate: float = 0.05) -> None:
        self.rate = _share("RelativeProbability.rate", rate)

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        return _at_least(logits, logits.amax(dim=-1, keepdim=True) + math.log(self.rate))


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
    """Tokens that every one of several filters keeps.

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
