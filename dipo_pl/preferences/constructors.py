"""Constructors: build the pair of next-token distributions that the DiPO losses compare."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from dipo_pl.errors import InputError, check_number, check_objects
from dipo_pl.preferences.filters import Filter, TopFraction


class Difference(NamedTuple):
    """Difference of the two distributions of a pair, which is all that the DiPO loss needs.

    Attributes:
        values: [N, V] forgetting minus remembering distribution; each row sums to 0. The caller may overwrite it.
        kept: [N] number of modulated tokens at each position.
    """

    values: Tensor
    kept: Tensor


class Pair(NamedTuple):
    """Two next-token distributions at each position, [N, V] each.

    Attributes:
        forgetting: confident tokens suppressed; preferred on forget rows, dispreferred on retain rows.
        remembering: confident tokens amplified; dispreferred on forget rows, preferred on retain rows.
    """

    forgetting: Tensor
    remembering: Tensor


class PreferenceConstructor(ABC):
    """Base of constructors: builds the preference pair, which is a constant in the gradient."""

    @abstractmethod
    def pair(self, logits: Tensor, targets: Tensor) -> Pair:
        """Return the two distributions.

        Args:
            logits: [N, V] float32, detached; must not be modified.
            targets: [N] the tokens to be predicted.
        """

    def difference(self, logits: Tensor, targets: Tensor) -> Difference:
        """Return the forgetting minus the remembering distribution; override it where that is cheaper than the pair.

        `kept` counts the tokens that are less probable in the forgetting distribution.

        Args:
            logits: [N, V] float32, detached; may be overwritten.
            targets: [N] the tokens to be predicted.
        """
        pair = self.pair(logits, targets)
        values = pair.forgetting - pair.remembering
        return Difference(values, (values < 0).sum(dim=-1))


class LogitModulation(PreferenceConstructor):
    r"""Constructor of DiPO: amplifies or suppresses the confident logits of the policy itself.

        m_v = max(0, z_v - c) if the filter keeps v, else 0
        remembering = softmax(z + alpha m),   forgetting = softmax(z - alpha m)

    where c is the mean logit of the position if `center` is true, else 0.

    Source: arXiv:2510.04773, memory vector and preference distributions, which have c = 0. Centering is a choice of
    this project: logits are defined only up to a constant at each position, and with c = 0 a model whose logits are
    all negative (GPT-2) would have its confident tokens amplified where they should be suppressed. Where the mean
    logit is 0, centering changes nothing. With centering, a kept token below the mean (only possible with a very
    loose filter or `TargetToken`) is not modulated.

    Args:
        filter: selects the confident tokens; null is TopFraction(0.05).
        alpha: strength of the modulation, > 0. The default of 1 is a choice of this project: the text of the paper
            that this project was built from does not give the paper's value.
        center: subtract the mean logit of the position (c above); false is the paper's form.

    Raises:
        InputError: `alpha` is not a finite number > 0.
    """

    def __init__(self, filter: Filter | None = None, alpha: float = 1.0, center: bool = True) -> None:
        check_objects("LogitModulation", filter=filter)
        check_number("LogitModulation.alpha", alpha, above=0)
        self.filter = filter or TopFraction()
        self.alpha = alpha
        self.center = center

    def memory(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the memory vector m and the mask of kept tokens, [N, V] each.

        Raises:
            InputError: `center` is false and a kept logit is not positive.
        """
        kept = self.filter.keep(logits, targets)
        memory = (logits - logits.mean(dim=-1, keepdim=True)).clamp(min=0) if self.center else logits
        self._check_positive(logits[kept])
        return memory.masked_fill(~kept, 0.0), kept

    def pair(self, logits: Tensor, targets: Tensor) -> Pair:
        """Return the two distributions; see the base class.

        Raises:
            InputError: `center` is false and a kept logit is not positive.
        """
        memory, _ = self.memory(logits, targets)
        return Pair((logits - self.alpha * memory).softmax(-1), (logits + self.alpha * memory).softmax(-1))

    def difference(self, logits: Tensor, targets: Tensor) -> Difference:
        """Return the difference with one exponential over the vocabulary in place of two softmaxes.

        With S the sum of e^z over tokens that are not kept, and Z the normalizer of either distribution, the tokens
        that are not kept differ by e^z (1 / Z_forgetting - 1 / Z_remembering); only the kept tokens, which are few,
        are computed separately for each distribution.

        Raises:
            InputError: `center` is false and a kept logit is not positive.
        """
        count, vocabulary = logits.shape
        places = self.filter.places(logits, targets)
        rows = places.div(vocabulary, rounding_mode="floor")
        center = logits.mean(dim=-1) if self.center else None
        rest, flat = logits, logits.view(-1)
        kept = flat.index_select(0, places)
        self._check_positive(kept)
        memory = kept if center is None else (kept - center.index_select(0, rows)).clamp_(min=0)
        flat.index_fill_(0, places, -torch.inf)
        # Finite also where every token is kept.
        top = rest.amax(dim=-1).clamp_(min=torch.finfo(rest.dtype).min)
        rest.sub_(top[:, None]).exp_()
        total = rest.sum(dim=-1)

        def distribution(modulated: Tensor) -> tuple[Tensor, Tensor]:
            """Return the probabilities of the kept tokens, and the factor on e^(z - top) of the others."""
            highest = top.scatter_reduce(0, rows, modulated, "amax")
            powers = (modulated - highest.index_select(0, rows)).exp_()
            scale = (top - highest).exp_()
            normalizer = (total * scale).index_add_(0, rows, powers)
            return powers.div_(normalizer.index_select(0, rows)), scale / normalizer

        forgetting, forgetting_factor = distribution(kept - self.alpha * memory)
        remembering, remembering_factor = distribution(kept + self.alpha * memory)
        rest.mul_((forgetting_factor - remembering_factor)[:, None])
        flat.index_copy_(0, places, forgetting.sub_(remembering))
        kept_count = torch.zeros(count, dtype=torch.long, device=rows.device)
        return Difference(rest, kept_count.index_add_(0, rows, torch.ones_like(rows)))

    def _check_positive(self, kept: Tensor) -> None:
        if not self.center and bool((kept <= 0).any()):
            raise InputError(
                f"LogitModulation.center is false and a kept logit is {kept.min().item():.3g}, not positive: "
                "suppressing it would amplify what is to be forgotten. Set center to true, or keep fewer tokens"
            )
