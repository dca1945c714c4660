"""Constructors: from a position's logits to the pair of distributions that a preference is stated on."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from dipo_pl.errors import InputError
from dipo_pl.filters import Filter, TopFraction


class Difference(NamedTuple):
    """What the DiPO loss needs of a pair.

    Attributes:
        values: [N, V] forgetting minus remembering distribution; each row sums to 0. The engine may
            write into it.
        kept: [N] tokens that were modulated.
    """

    values: Tensor
    kept: Tensor


class Pair(NamedTuple):
    """Two next-token distributions a position, [N, V] each.

    Attributes:
        forgetting: confident tokens suppressed; preferred on forget rows, dispreferred on retain rows.
        remembering: confident tokens amplified; the other way round.
    """

    forgetting: Tensor
    remembering: Tensor


class PreferenceConstructor(ABC):
    """Builds the preference pair. What it returns is a constant in the gradient."""

    @abstractmethod
    def pair(self, logits: Tensor, targets: Tensor) -> Pair:
        """The pair of distributions.

        Args:
            logits: [N, V] float32, detached; not to be written into.
            targets: [N] the tokens to be predicted.
        """

    def difference(self, logits: Tensor, targets: Tensor) -> Difference:
        """Forgetting minus remembering; override it where it can be had more cheaply than the pair.

        `kept` counts the tokens that the pair disagrees about in favour of remembering.
        """
        pair = self.pair(logits, targets)
        values = pair.forgetting - pair.remembering
        return Difference(values, (values < 0).sum(dim=-1))


class LogitModulation(PreferenceConstructor):
    r"""DiPO's constructor: amplify or suppress the policy's own confident logits.

        m_v = z_v - c if v is kept by the filter, else 0
        remembering = softmax(z + alpha m),   forgetting = softmax(z - alpha m)

    with c the position's mean logit if centred, else 0. Source: arXiv:2510.04773, memory vector and
    preference distributions. Differs: the paper has c = 0. Logits are defined only up to a constant a
    position, and a model whose logits are all negative (GPT-2) would have its confident tokens amplified
    where they should be suppressed; centring removes the ambiguity and changes nothing where the mean is 0.

    Args:
        filter: which tokens are confident; null is TopFraction(0.05).
        alpha: strength of the modulation, > 0 (1 in the paper).
        center: subtract the position's mean logit; false is the paper's letter.
    """

    def __init__(self, filter: Filter | None = None, alpha: float = 1.0, center: bool = True) -> None:
        if not 0 < alpha < math.inf:
            raise InputError(f"LogitModulation.alpha must be a finite number > 0, got {alpha}")
        self.filter = filter or TopFraction()
        self.alpha = alpha
        self.center = center

    def memory(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The memory vector m and the mask of kept tokens, [N, V] each.

        Raises:
            InputError: not centred, and a kept logit is not positive.
        """
        kept = self.filter.keep(logits, targets)
        memory = logits - logits.mean(dim=-1, keepdim=True) if self.center else logits
        memory = memory.masked_fill(~kept, 0.0)
        if not self.center and bool((kept & (logits <= 0)).any()):
            lowest = logits.masked_fill(~kept, torch.inf).min().item()
            raise InputError(
                f"LogitModulation.center is false and a kept logit is {lowest:.3g}, not positive: suppressing "
                "it would amplify what is to be forgotten. Set center to true, or keep fewer tokens"
            )
        return memory, kept

    def pair(self, logits: Tensor, targets: Tensor) -> Pair:
        memory, _ = self.memory(logits, targets)
        return Pair((logits - self.alpha * memory).softmax(-1), (logits + self.alpha * memory).softmax(-1))

    def difference(self, logits: Tensor, targets: Tensor) -> Difference:
        memory, kept = self.memory(logits, targets)
        memory.mul_(self.alpha)
        forgetting = torch.softmax(logits - memory, dim=-1)
        return Difference(forgetting.sub_(torch.softmax(logits.add(memory), dim=-1)), kept.sum(dim=-1))
