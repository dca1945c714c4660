"""The forget loss of primal-dual unlearning: logit-margin flattening."""

from torch import Tensor

from dipo_pl.losses.base import Loss, Terms


class PDU(Loss):
    r"""Flattens the logits until no token stands out; for forget rows.

        L = mean_s (1 / n_s) sum_t (max_v z_v - mean_v z_v)^2

    on raw logits z, of which a constant may be taken without a difference. It is 0 where all tokens are alike,
    and its size that of squared logits, some hundreds. The method's other half is a constraint on the retain
    loss: give model.retain_weight a DualWeight.

    Source: Entesari et al. 2025, arXiv:2506.05314, logit-margin flattening. Its authors' version in
    open-unlearning takes the mean over all labelled tokens of the batch, and the logits at each
    label's own position, which predict the token after it.
    """

    def terms(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Tensor:
        return (logits.max(dim=-1).values - logits.mean(dim=-1)).square()

    def terms_and_gradient(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> Terms:
        top, token = logits.max(dim=-1, keepdim=True)
        margin = top - logits.mean(dim=-1, keepdim=True)
        gradient = logits.copy_(margin * (-2 / logits.shape[-1])).scatter_add_(-1, token, 2 * margin)
        return Terms(margin.squeeze(-1).square(), gradient, {})

    def sequence_loss(self, sums: Tensor, lengths: Tensor) -> Tensor:
        return sums / lengths
