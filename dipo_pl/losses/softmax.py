"""The softmax that losses with a closed-form gradient share."""

from torch import Tensor


def softmax_(logits: Tensor) -> Tensor:
    """In place: z becomes softmax(z). Returns log sum_v e^(z_v), in nats: [N, V] -> [N]."""
    top = logits.amax(dim=-1, keepdim=True)
    total = logits.sub_(top).exp_().sum(dim=-1, keepdim=True)
    logits.div_(total)
    return (top + total.log()).squeeze(-1)
