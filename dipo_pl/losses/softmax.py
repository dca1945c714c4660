"""Softmax in place, for losses with a closed-form gradient."""

from torch import Tensor


def softmax_(logits: Tensor) -> Tensor:
    """Turn z into softmax(z) in place, and return log sum_v e^(z_v) in nats: [N, V] -> [N]."""
    top = logits.amax(dim=-1, keepdim=True)
    total = logits.sub_(top).exp_().sum(dim=-1, keepdim=True)
    logits.div_(total)
    return (top + total.log()).squeeze(-1)
