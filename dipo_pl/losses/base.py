"""Base of losses: a term at each position, summed over its sequence, and a function of that sum."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

# Target of a position that a loss does not select.
UNSELECTED = -1


class Terms(NamedTuple):
    """Terms of a group of positions.

    Attributes:
        values: [N] the term q_t of each position.
        gradient: [N, V] dq_t / dz_t; the engine may write into it.
        parts: [N] tensors by name, to be logged; averaged over positions.
    """

    values: Tensor
    gradient: Tensor
    parts: dict[str, Tensor]


class Loss(ABC):
    r"""Loss that is a mean over sequences s of f(Q_s, n_s), with Q_s the sum of q_t over the n_s positions t of s.

    A loss that its paper defines over tokens is the mean over all positions of q_t instead.

    q_t is a function of the logits at t alone, so that the engine can evaluate a batch in groups and hold
    the logits of one group at a time. A subclass gives `terms`, and `sequence_loss` if f is not
    the identity; `terms_and_gradient` comes from autograd unless a closed form is given.

    Attributes:
        uses_reference: whether `terms` needs the reference's logits.
        mean_over: what the mean is taken over: `sequences`, each counted once whatever its length, or
            `tokens`; the latter has no f, and makes a loss depend on how a batch is divided into
            micro-batches.
        skip: answer tokens at the start of each sequence that the loss leaves out.
        companions: kinds of sequences that go with each row (`alternate`: another answer to its
            question; `mismatched`: its question with another row's answer). f is then a function of the sums of
            a row and its companions together.
        constant_companions: those companions whose sums are constants in the gradient. None of it reaches their hidden
            states, so that they need no backward pass.
        couples_sequences: whether f of one sequence depends on the sums of others. All sums must then
            be known before any gradient; if they do not fit the budget, logits are computed twice.
        selects: whether positions are chosen by the reference's probabilities of a whole sequence before any term is
            computed; the targets of the others are then `UNSELECTED`. Costs another pass of the reference's head.
        layer: null acts on logits. A number acts on the output of that decoder layer instead, counted
            from 0, a float on that of the layer with this share of the layers before it, rounded down. Hidden
            states [N, d], the model's own and not to be written into, then take the place of logits [N, V].
    """

    uses_reference: ClassVar[bool] = False
    mean_over: ClassVar[Literal["sequences", "tokens"]] = "sequences"
    skip: int = 0
    companions: ClassVar[tuple[str, ...]] = ()
    constant_companions: ClassVar[tuple[str, ...]] = ()
    couples_sequences: ClassVar[bool] = False
    selects: ClassVar[bool] = False
    layer: int | float | None = None

    @abstractmethod
    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        """Return q_t, [N] float32, differentiable in `logits`.

        Args:
            logits: [N, V] float32.
            targets: [N] token ids, or `UNSELECTED` where the loss selects other positions.
            reference_logits: [N, V] float32, detached; None unless `uses_reference`.
        """

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        """Return q_t and dq_t / dz_t; overridden where the gradient has a closed form.

        May write into `logits` and `reference_logits`, which are as large as everything else together and are
        not used again; the gradient may be one of them.
        """
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            values = self.terms(leaf, targets, reference_logits)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        # A term like logits.sum(-1) has a gradient whose entries share memory.
        return Terms(values.detach(), gradient.contiguous(), {})

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Return f(Q_s, n_s), [S], differentiable in `sums`; the identity by default, unused by a token mean.

        Args:
            sums: [S], or [S, 1 + companions]: the row's own, then each companion's in their order.
            lengths: positions summed, in the same shape.
        """
        return sums

    def select(self, log_probabilities: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the mask of the positions that the loss selects, [N] bool; all by default.

        Args:
            log_probabilities: [N] log ref(y_t) in nats, float32, sequence after sequence.
            lengths: positions of each sequence; 0 for an empty one.
        """
        return torch.ones_like(log_probabilities, dtype=torch.bool)

    def constant_sums(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Return what f takes in the place of the sums of constant companions; the sums themselves by default.

        Args:
            sums: [S, constant companions] of all rows of the section, without a gradient.
            lengths: positions summed, in the same shape.
        """
        return sums

    def sequence_parts(self, sums: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Return [S] tensors by name, to be logged; averaged over sequences. Shapes as in `sequence_loss`."""
        return {}


@dataclass
class Section:
    """The sequences that one loss is computed on.

    Attributes:
        loss: the loss.
        states: [N, d] hidden states at the positions that predict answer tokens: the last ones, or those
            of `loss.layer`.
        targets: [N] the tokens to be predicted.
        lengths: positions of each sequence, in order; they sum to N. An empty sequence is not counted.
            Where the loss has companions, the rows' own sequences come first, then those of each
            companion in the rows' order.
        reference_states: [N, d'] the reference's, where the loss uses one.
        weight: factor on the loss.
        entropy: factor on the entropy of the rows' own next-token distributions (`Entropy`), which is added to the
            weighted loss; only for a loss of logits.
        until: nats a token of a row's own answer at which nothing of the row is left in the loss (`until_weights`); null
            leaves every row its whole weight. Only for a loss of logits that selects no positions.
    """

    loss: Loss
    states: Tensor
    targets: Tensor
    lengths: Sequence[int]
    reference_states: Tensor | None = None
    weight: float = 1.0
    entropy: float = 0.0
    until: float | None = None
