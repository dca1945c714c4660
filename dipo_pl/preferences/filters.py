"""Filters: select the logits of a position that are confident enough to enter its memory vector."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from dipo_pl.errors import InputError, check_number, check_share


class Filter(ABC):
    """Base of filters: selects tokens at each position by the logits of that position."""

    @abstractmethod
    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mask of kept tokens.

        Args:
            logits: [N, V] float.
            targets: [N] the tokens to be predicted.

        Returns:
            [N, V] bool, the same for logits + constant. A position that keeps nothing has no preference.
        """

    def places(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the indices of the kept tokens in the flattened logits, [K] in ascending order."""
        kept = self.keep(logits, targets).flatten()
        if kept.device.type != "cpu":
            return kept.nonzero().squeeze(1)
        # Twice as fast as torch.nonzero.
        return torch.from_numpy(np.flatnonzero(kept.numpy()))


class TopFraction(Filter):
    """Filter that keeps a fixed share of the vocabulary, the highest logits: rank(v) <= max(1, round(rate * V)).

    Tokens that tie with the last kept one are kept too.

    Source: arXiv:2510.04773, whose threshold p = 0.05 is described both as a rank and as a relative probability. This
    is the rank form alone; `RelativeProbability` is the relative form. The paper's own filter is probably their union
    (the larger of the two sets; `AnyOf`), as in code for contrastive decoding. Keeping the rank form as the default is a
    choice of this project; how p should follow the scale and the task is an open question of the paper.

    Args:
        rate: share of the vocabulary, in (0, 1].

    Raises:
        InputError: `rate` is outside of (0, 1].
    """

    def __init__(self, rate: float = 0.05) -> None:
        check_share("TopFraction.rate", rate)
        self.rate = rate

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mask of kept tokens; see the base class."""
        return _at_least(logits, _highest(logits, max(1, round(self.rate * logits.shape[-1]))))


class RelativeProbability(Filter):
    """Filter that keeps tokens at least `rate` times as probable as the most probable one: z_v >= max z + ln(rate).

    Source: arXiv:2510.04773, the relative form of its threshold; see `TopFraction`.

    Args:
        rate: share of the largest probability, in (0, 1].

    Raises:
        InputError: `rate` is outside of (0, 1].
    """

    def __init__(self, rate: float = 0.05) -> None:
        check_share("RelativeProbability.rate", rate)
        self.rate = rate

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mask of kept tokens; see the base class."""
        return _at_least(logits, logits.amax(dim=-1, keepdim=True) + math.log(self.rate))


class EffectiveTokens(Filter):
    r"""Filter that keeps as many of the highest logits as the position is uncertain about.

        rank(v) <= max(1, round(scale * e^H)),   H = - sum_v p_v ln p_v

    H is the entropy of the position in nats, and e^H its perplexity: 1 where one token is certain, V where all are
    equally probable. Tokens that tie with the last kept one are kept too. Not from the DiPO paper, which keeps a
    fixed share of the vocabulary and leaves open how to choose it.

    Args:
        scale: factor on the perplexity, > 0.

    Raises:
        InputError: `scale` is not a finite number > 0.
    """

    def __init__(self, scale: float = 1.0) -> None:
        check_number("EffectiveTokens.scale", scale, above=0)
        self.scale = scale

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mask of kept tokens; see the base class."""
        log_p = logits.log_softmax(dim=-1)
        perplexity = torch.exp(-(log_p.exp() * log_p).sum(dim=-1, keepdim=True))
        ranks = (self.scale * perplexity).round().clamp(1, logits.shape[-1]).long()
        highest = logits.topk(int(ranks.max()), dim=-1).values
        return _at_least(logits, highest.gather(-1, ranks - 1))


class Nucleus(Filter):
    """Filter that keeps the fewest most probable tokens whose probabilities sum to at least `mass`.

    Source: nucleus (top-p) sampling, Holtzman et al. 2020, arXiv:1904.09751. Not from the DiPO paper.

    Args:
        mass: cumulative probability, in (0, 1]; 1 keeps every token.

    Raises:
        InputError: `mass` is outside of (0, 1].
    """

    def __init__(self, mass: float = 0.9) -> None:
        check_share("Nucleus.mass", mass)
        self.mass = mass

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mask of kept tokens; see the base class."""
        probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        # A float32 sum reaches 1 before the last tokens are added.
        keep_sorted = before < (self.mass if self.mass < 1 else torch.inf)
        return torch.zeros_like(keep_sorted).scatter(-1, order, keep_sorted)


class TargetToken(Filter):
    """Filter that keeps only the token that stands in the text.

    Gives DiPO the reach of a loss on labels; the other filters also keep alternatives that the model finds probable.
    Not from the DiPO paper.
    """

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mask of kept tokens; see the base class."""
        return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, targets[:, None], True)


class AllOf(Filter):
    """Filter that keeps the tokens that each of several filters keeps (their intersection).

    Args:
        filters: at least one filter.

    Raises:
        InputError: `filters` is empty.
    """

    def __init__(self, filters: Sequence[Filter]) -> None:
        self.filters = _several("AllOf", filters)

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mask of kept tokens; see the base class."""
        return reduce(torch.logical_and, (each.keep(logits, targets) for each in self.filters))


class AnyOf(Filter):
    """Filter that keeps the tokens that any of several filters keeps (their union).

    With `TopFraction` and `RelativeProbability` of one rate it is the larger of their two sets at each position, which is
    probably the filter of arXiv:2510.04773; see `TopFraction`.

    Args:
        filters: at least one filter.

    Raises:
        InputError: `filters` is empty.
    """

    def __init__(self, filters: Sequence[Filter]) -> None:
        self.filters = _several("AnyOf", filters)

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mask of kept tokens; see the base class."""
        return reduce(torch.logical_or, (each.keep(logits, targets) for each in self.filters))


def _several(name: str, filters: Sequence[Filter]) -> list[Filter]:
    if not filters:
        raise InputError(f"{name}.filters must name at least one filter (got none)")
    return list(filters)


def _at_least(logits: Tensor, threshold: Tensor) -> Tensor:
    """Return [N, V] bool, whether a logit reaches the threshold of its position, [N, 1]."""
    if logits.device.type != "cpu":
        return logits >= threshold
    # The comparison of torch is not vectorized: 1.5 ms where NumPy took 0.4, 12.6 where it took 1.7 (64 x 128,256).
    return torch.from_numpy(logits.detach().numpy() >= threshold.numpy())


def _highest(logits: Tensor, rank: int) -> Tensor:
    """Return the logit of that rank, counted from 1, at each position, [N, 1]."""
    if logits.device.type != "cpu":
        return logits.topk(rank, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    # NumPy took 2.7 ms where torch.topk took 18 and torch.kthvalue 24 (64 x 32,000, rank 1,600, one thread).
    place = logits.shape[-1] - rank
    values = logits.detach().numpy()
    # A position at a time stays in the cache, and needs no copy of all logits.
    position = np.empty_like(values[0])
    selected = np.empty((len(values), 1), dtype=values.dtype)
    for each, found in zip(values, selected, strict=True):
        position[:] = each
        position.partition(place)
        found[:] = position[place]
    return torch.from_numpy(selected)
