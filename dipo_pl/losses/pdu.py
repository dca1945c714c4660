"""Logit-margin flattening, the forget loss of primal-dual unlearning (PDU)."""

from torch import Tensor

from dipo_pl.losses.base import Loss, Terms


class PDU(Loss):
    r"""Loss that flattens the logits until no token stands out; for forget rows.

        L = mean_s (1 / n_s) sum_t (max_v z_v - mean_v z_v)^2

    on raw logits z; a constant added to them changes nothing. It is 0 where all logits are equal, and of the
    size of squared logits, some hundreds. The other half of the method is a constraint on the retain loss:
    set model.retain_weight to a DualWeight.

    Source: Entesari et al. 2025, arXiv:2506.05314, logit-margin flattening. This is its masked form, of answer tokens alone,
    as in its authors' version in open-unlearning since #147; before, padding and prompts counted too. That version takes
    the mean over all labeled tokens of the batch, and the logits at each label's own position, which predict the
    token after it.
    """

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        """Return the squared margin between the largest and the mean logit of each position."""
        return (logits.max(dim=-1).values - logits.mean(dim=-1)).square()

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        """Return the terms and their closed-form gradient."""
        top, token = logits.max(dim=-1, keepdim=True)
        margin = top - logits.mean(dim=-1, keepdim=True)
        gradient = logits.copy_(margin * (-2 / logits.shape[-1])).scatter_add_(-1, token, 2 * margin)
        return Terms(margin.squeeze(-1).square(), gradient, {})

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Return the mean over the positions of a sequence."""
        return sums / lengths
