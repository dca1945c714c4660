"""What a loss is: a term a position, summed over its sequence, and a function of that sum."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor


class Terms(NamedTuple):
    """A group's terms.

    Attributes:
        values: [N] the term q_t of each position.
        gradient: [N, V] dq_t / dz_t; the engine may write into it.
        parts: [N] tensors by name, to be watched; averaged over positions.
    """

    values: Tensor
    gradient: Tensor
    parts: dict[str, Tensor]


class Loss(ABC):
    r"""L = mean over sequences s of f(Q_s, n_s),  Q_s = sum over positions t of s of q_t,

    or, for a loss that its paper defines over tokens, the mean over all positions of q_t.

    q_t is a function of the logits at t alone, so that the engine can walk a batch in groups and hold
    the logits of one group at a time. A subclass gives `terms`, and `sequence_loss` if f is not
    the identity; `terms_and_gradient` comes from autograd unless a closed form is given.

    Attributes:
        uses_reference: whether `terms` needs the reference's logits.
        mean_over: what the mean is taken over: `sequences`, each counted once whatever its length, or
            `tokens`; the latter has no f, and makes a loss depend on how a batch is divided into
            micro-batches.
        skip: answer tokens at the start of each sequence that the loss leaves out.
        companions: sections of the batch that go with each row (`alternate`: another answer to its
            question; `mismatched`: its question with another row's answer). f is then of the sums of
            a row and its companions together.
        couples_sequences: whether f of one sequence depends on the sums of others. They must then all
            be known before any gradient, and the logits are computed twice.
        layer: null acts on logits. A number acts on the output of that decoder layer instead, counted
            from 0, a float on that of the layer with this share of the layers before it, rounded down. Hidden
            states [N, d], the model's own and not to be written into, then stand where logits [N, V] do.
    """

    uses_reference: ClassVar[bool] = False
    mean_over: ClassVar[Literal["sequences", "tokens"]] = "sequences"
    skip: int = 0
    companions: ClassVar[tuple[str, ...]] = ()
    couples_sequences: ClassVar[bool] = False
    layer: int | float | None = None

    @abstractmethod
    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        """q_t, differentiable in `logits`.

        Args:
            logits: [N, V] float32.
            targets: [N] token ids.
            reference_logits: [N, V] float32, detached; None unless `uses_reference`.
        Returns:
            [N] float32.
        """

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        """q_t and dq_t / dz_t. Override it where the gradient has a closed form.

        May write into `logits` and `reference_logits`, which are as large as all else together and have
        no further use; the gradient may be one of them.
        """
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            values = self.terms(leaf, targets, reference_logits)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        # A term like logits.sum(-1) has a gradient whose entries share memory.
        return Terms(values.detach(), gradient.contiguous(), {})

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """f(Q_s, n_s), differentiable in `sums`; the identity by default. Not used with `mean_over` tokens.

        Args:
            sums: [S], or [S, 1 + companions]: the row's own, then each companion's in their order.
            lengths: positions summed, in the same shape.
        Returns:
            [S].
        """
        return sums

    def sequence_parts(self, sums: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """[S] tensors by name, to be watched; averaged over sequences. Shapes as in `sequence_loss`."""
        return {}
