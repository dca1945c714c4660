"""Constructors: from a position's logits to the pair of distributions that a preference is stated on."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from dipo_pl.errors import InputError
from dipo_pl.preferences.filters import Filter, TopFraction


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

        May write into `logits`. `kept` counts the tokens that the pair disagrees about in favour of
        remembering.
        """
        pair = self.pair(logits, targets)
        values = pair.forgetting - pair.remembering
        return Difference(values, (values < 0).sum(dim=-1))


class LogitModulation(PreferenceConstructor):
    r"""DiPO's constructor: amplify or suppress the policy's own confident logits.

        m_v = max(0, z_v - c) if v is kept by the filter, else 0
        remembering = softmax(z + alpha m),   forgetting = softmax(z - alpha m)

    with c the position's mean logit if centred, else 0. Source: arXiv:2510.04773, memory vector and
    preference distributions. Differs: the paper has c = 0. Logits are defined only up to a constant a
    position, and a model whose logits are all negative (GPT-2) would have its confident tokens amplified
    where they should be suppressed; centring removes the ambiguity and changes nothing where the mean is 0.
    A token below the mean, which only a very loose filter or TargetToken keeps, is nothing to be suppressed.

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
        memory = (logits - logits.mean(dim=-1, keepdim=True)).clamp(min=0) if self.center else logits
        memory = memory.masked_fill(~kept, 0.0)
        self._refuse_negative(logits[kept])
        return memory, kept

    def pair(self, logits: Tensor, targets: Tensor) -> Pair:
        memory, _ = self.memory(logits, targets)
        return Pair((logits - self.alpha * memory).softmax(-1), (logits + self.alpha * memory).softmax(-1))

    def difference(self, logits: Tensor, targets: Tensor) -> Difference:
        """The few kept tokens apart, all others by one exponential: no second softmax of the vocabulary.

        With S the sum of e^z over tokens that are not kept, and Z the normaliser of either distribution,
        the others differ by e^z (1 / Z_forgetting - 1 / Z_remembering).
        """
        count, vocabulary = logits.shape
        places = self.filter.places(logits, targets)
        rows = places.div(vocabulary, rounding_mode="floor")
        center = logits.mean(dim=-1) if self.center else None
        rest, flat = logits, logits.view(-1)
        kept = flat.index_select(0, places)
        self._refuse_negative(kept)
        memory = kept if center is None else (kept - center.index_select(0, rows)).clamp_(min=0)
        flat.index_fill_(0, places, -torch.inf)
        # Finite where no token is left.
        top = rest.amax(dim=-1).clamp_(min=torch.finfo(rest.dtype).min)
        rest.sub_(top[:, None]).exp_()
        total = rest.sum(dim=-1)

        def distribution(modulated: Tensor) -> tuple[Tensor, Tensor]:
            """Probabilities of the kept tokens, and the factor on e^(z - top) of the others."""
            highest = top.scatter_reduce(0, rows, modulated, "amax")
            powers = (modulated - highest.index_select(0, rows)).exp_()
            scale = (top - highest).exp_()
            normaliser = (total * scale).index_add_(0, rows, powers)
            return powers.div_(normaliser.index_select(0, rows)), scale / normaliser

        forgetting, forgetting_factor = distribution(kept - self.alpha * memory)
        remembering, remembering_factor = distribution(kept + self.alpha * memory)
        rest.mul_((forgetting_factor - remembering_factor)[:, None])
        flat.index_copy_(0, places, forgetting.sub_(remembering))
        kept_count = torch.zeros(count, dtype=torch.long, device=rows.device)
        return Difference(rest, kept_count.index_add_(0, rows, torch.ones_like(rows)))

    def _refuse_negative(self, kept: Tensor) -> None:
        if not self.center and bool((kept <= 0).any()):
            raise InputError(
                f"LogitModulation.center is false and a kept logit is {kept.min().item():.3g}, not positive: "
                "suppressing it would amplify what is to be forgotten. Set center to true, or keep fewer tokens"
            )
