"""The methods as one would write them down: whole models, whole logits, autograd. What ours is measured by."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

IGNORED = -100


class Rows(NamedTuple):
    """A set as transformers takes it; `labels` are IGNORED where the prompt is."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


def graddiff(policy: PreTrainedModel, reference: None, sets: dict[str, Rows]) -> Tensor:
    """Gradient ascent on forget rows, cross-entropy on all others, by the model's own loss."""
    losses = {name: policy(**rows._asdict()).loss for name, rows in sets.items()}
    forget = losses.pop("forget")
    return torch.stack(list(losses.values())).sum() - forget


def npo(
    policy: PreTrainedModel, reference: PreTrainedModel, sets: dict[str, Rows], beta: float = 0.1
) -> Tensor:
    """NPO on forget rows (arXiv:2404.05868, Eq. 3), cross-entropy on retain rows."""
    ratio = _log_probability(policy, sets["forget"])
    with torch.no_grad():
        ratio_of_reference = _log_probability(reference, sets["forget"])
    forget = -functional.logsigmoid(-beta * (ratio - ratio_of_reference)).mean() * 2 / beta
    return forget + policy(**sets["retain"]._asdict()).loss


def _log_probability(model: PreTrainedModel, rows: Rows) -> Tensor:
    """[B] summed over the answer."""
    logits = model(rows.input_ids, rows.attention_mask).logits[:, :-1].float()
    labels = rows.labels[:, 1:]
    log_p = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    return (log_p * (labels != IGNORED)).sum(-1)


def dipo(
    policy: PreTrainedModel, reference: PreTrainedModel, sets: dict[str, Rows], beta: float = 0.05
) -> Tensor:
    """DiPO on forget and on retain rows (arXiv:2510.04773, Eq. 14), but for the centred memory vector."""
    losses = []
    for name, rows in sets.items():
        margin = _margin(policy, reference, rows) * (1 if name == "forget" else -1)
        losses.append(-functional.logsigmoid(beta * margin).mean())
    return torch.stack(losses).sum()


def _margin(
    policy: PreTrainedModel, reference: PreTrainedModel, rows: Rows, rate: float = 0.05, alpha: float = 1.0
) -> Tensor:
    """[B] with the forgetting distribution preferred. The other way round it changes its sign."""
    logits = policy(rows.input_ids, rows.attention_mask).logits[:, :-1].float()
    with torch.no_grad():
        log_reference = reference(rows.input_ids, rows.attention_mask).logits[:, :-1].float().log_softmax(-1)
        lowest = logits.topk(round(rate * logits.shape[-1])).values[..., -1:]
        memory = torch.where(logits >= lowest, logits - logits.mean(-1, keepdim=True), 0.0)
        preferred = (logits - alpha * memory).log_softmax(-1)
        dispreferred = (logits + alpha * memory).log_softmax(-1)
    log_policy = logits.log_softmax(-1)
    margin = (
        _divergence(dispreferred, log_policy)
        - _divergence(preferred, log_policy)
        + _divergence(preferred, log_reference)
        - _divergence(dispreferred, log_reference)
    )
    return (margin * (rows.labels[:, 1:] != IGNORED)).sum(-1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """[B, T] KL(p || q)."""
    return functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
