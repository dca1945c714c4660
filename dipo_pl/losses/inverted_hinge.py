"""Inverted hinge loss (IHL), the forget loss of low-rank knowledge unlearning (LoKU)."""

from typing import ClassVar, Literal

from torch import Tensor

from dipo_pl.losses.base import Loss, Terms
from dipo_pl.losses.softmax import softmax_


class InvertedHinge(Loss):
    r"""Loss that puts the next most probable token in place of the answer's; for forget rows.

        L = mean over answer tokens of 1 + p(y) - max_(v != y) p(v)

    between 0, where another token is certain, and 2. With v* the token of the maximum, the gradient is

        dL/dz = p_y (onehot(y) - p) - p_v* (onehot(v*) - p)

    so that, unlike under gradient ascent, probability moves from one token to one other, not to the whole vocabulary,
    and nothing grows without bound.

    Source: Cha et al. 2025, arXiv:2408.06621, inverted hinge loss. Its code takes the mean over a batch's answer tokens, as
    here, and adds cross-entropy on retain rows. The other half of the method is the initialization of LoRA.
    """

    mean_over: ClassVar[Literal["sequences", "tokens"]] = "tokens"

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        """Return 1 plus the lead of the answer's token over the most probable other one."""
        p, targets = logits.softmax(dim=-1), targets[:, None]
        other = p.detach().scatter(-1, targets, -1.0).argmax(dim=-1, keepdim=True)
        return 1 + (p.gather(-1, targets) - p.gather(-1, other)).squeeze(-1)

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        """Return the terms, their closed-form gradient, and p(y) as a part."""
        softmax_(logits)
        targets = targets[:, None]
        own = logits.gather(-1, targets)
        other, token = logits.scatter_(-1, targets, -1.0).max(dim=-1, keepdim=True)
        lead = own - other
        gradient = logits.scatter_(-1, targets, own).mul_(-lead)
        gradient.scatter_add_(-1, targets, own).scatter_add_(-1, token, -other)
        return Terms((1 + lead).squeeze(-1), gradient, {"probability": own.squeeze(-1)})
