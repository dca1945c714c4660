"""SHRED: self-distillation without the answer's least expected tokens, which needs no retain rows."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dipo_pl.errors import check_count, check_share
from dipo_pl.losses.base import Loss, Terms
from dipo_pl.losses.softmax import softmax_


class SHRED(Loss):
    r"""Loss that imitates the reference, without the answer's token where that token carries information.

        L = mean over answer tokens t of KL(q_t||p_t), in nats
        q_t(v) = ref_t(v) [v in top_t] [v not in D_t] / Z_t

    with top_t the `top` most probable tokens of the reference. D_t = {y_t} at the forget positions, which are those
    `share` of an answer's positions where ref_t(y_t) is lowest; it is empty at the others, which anchor the model to
    what it was. The loss has a minimum, 0, and its gradient is p - q.

    Source: Hu et al. 2026, arXiv:2605.07482, as drawn in the figure of the method on the authors' page
    (zizhao-hu.github.io/bengal-unlearning), whose variant A of D_t this is; variant B also leaves out a nucleus of the
    reference. The text of the paper was not at hand. Therefore these are this project's choices: the number of top
    tokens; how a share of n positions is rounded (to the nearest number, at least 1); that p is not renormalized over
    the top tokens; and the mean over tokens, where the figure has a sum. Of equally probable positions the first are
    taken.

    Args:
        share: P, the share of each answer's positions that are forget positions, in (0, 1] (0.5 in the authors' examples).
        top: K, the tokens of the reference that are imitated, at least 2.
        skip: answer tokens at the start of each sequence that the loss leaves out, >= 0 (the authors' `skip_tokens`, for
            documents without a question).
    """

    uses_reference: ClassVar[bool] = True
    selects: ClassVar[bool] = True
    mean_over: ClassVar[Literal["sequences", "tokens"]] = "tokens"

    def __init__(self, share: float = 0.5, top: int = 100, skip: int = 0) -> None:
        check_share("SHRED.share", share)
        check_count("SHRED.top", top, 2)
        check_count("SHRED.skip", skip, 0)
        self.share = share
        self.top = top
        self.skip = skip

    def select(self, log_probabilities: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the mask of forget positions: in each sequence, the share with the lowest log ref(y)."""
        selected = torch.zeros_like(log_probabilities, dtype=torch.bool)
        masks = selected.split(list(lengths))
        for values, mask in zip(log_probabilities.split(list(lengths)), masks, strict=True):
            mask[values.argsort(stable=True)[: max(1, round(self.share * len(values)))]] = True
        return selected

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        """Return KL(q||p) of each position; a negative target marks a position that is not a forget position."""
        assert reference_logits is not None
        imitated = self._without_(reference_logits.clone(), targets).softmax(dim=-1)
        expected = (imitated * logits.log_softmax(dim=-1)).sum(dim=-1)
        entropy: Tensor = torch.special.entr(imitated).sum(dim=-1)
        return -entropy - expected

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        """Return the terms, their gradient p - q, and whether a position is a forget position as a part."""
        assert reference_logits is not None
        gap = reference_logits - logits
        imitated = self._without_(reference_logits, targets)
        normalizer, reference_normalizer = softmax_(logits), softmax_(imitated)
        values = torch.linalg.vecdot(imitated, gap) + (normalizer - reference_normalizer)
        return Terms(values, logits.sub_(imitated), {"forget_positions": (targets >= 0).float()})

    def _without_(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Set to -inf, in place, what is not among the top tokens, and the target at forget positions."""
        if self.top < logits.shape[-1]:
            least = logits.topk(self.top, dim=-1).values[:, -1:]
            logits.masked_fill_(logits < least, -torch.inf)
        own = logits.gather(-1, targets.clamp(min=0)[:, None])
        demoted = own.masked_fill((targets >= 0)[:, None], -torch.inf)
        return logits.scatter_(-1, targets.clamp(min=0)[:, None], demoted)
