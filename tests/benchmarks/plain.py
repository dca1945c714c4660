"""The methods as one would write them down: whole models, whole logits, autograd. What ours is measured by.

And the strongest that one could write for cross-entropy: `chunked_graddiff`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

IGNORED = -100
CHUNK = 256


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


def chunked_graddiff(policy: PreTrainedModel, reference: None, sets: dict[str, Rows]) -> Tensor:
    """GradDiff as Liger and Cut Cross-Entropy do it: one forward pass, and no more logits than a chunk's answers."""
    rows = Rows(*(torch.cat(each) for each in zip(*sets.values(), strict=True)))
    states = policy.get_decoder()(rows.input_ids, rows.attention_mask, use_cache=False).last_hidden_state
    weights = []
    for name, each in sets.items():
        answers = (each.labels[:, 1:] != IGNORED).float()
        weights.append(answers * (-1 if name == "forget" else 1) / answers.sum())
    labels = rows.labels[:, 1:]
    answers = labels != IGNORED
    head = policy.get_output_embeddings().weight
    loss: Tensor = ChunkedCrossEntropy.apply(
        states[:, :-1][answers], head, labels[answers], torch.cat(weights)[answers]
    )
    return loss


class ChunkedCrossEntropy(torch.autograd.Function):
    """Weighted sum of cross-entropies, whose gradients are computed with each chunk's logits in the forward pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        total = torch.zeros((), device=states.device)
        by_states = torch.empty_like(states)
        by_head = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        for start in range(0, len(states), CHUNK):
            chunk = slice(start, start + CHUNK)
            logits = (states[chunk] @ head.T).float()
            log_p = logits.log_softmax(-1)
            chosen = labels[chunk, None]
            total -= (log_p.gather(-1, chosen).squeeze(-1) * weights[chunk]).sum()
            gradient = log_p.exp_().scatter_add_(-1, chosen, -torch.ones_like(log_p[:, :1]))
            gradient = gradient.mul_(weights[chunk, None]).to(head.dtype)
            torch.mm(gradient, head, out=by_states[chunk])
            if by_head is not None:
                by_head.addmm_(gradient.T, states[chunk])
        ctx.gradients = by_states, by_head
        return total

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor | None, ...]:
        by_states, by_head = ctx.gradients
        return by_states.mul_(by_loss), None if by_head is None else by_head.mul_(by_loss), None, None


def npo(
    policy: PreTrainedModel, reference: PreTrainedModel, sets: dict[str, Rows], beta: float = 0.1
) -> Tensor:
    """NPO on forget rows (arXiv:2404.05868, Eq. 3), cross-entropy on retain rows."""
    ratio = _log_probability(policy, sets["forget"])
    with torch.no_grad():
        ratio_of_reference = _log_probability(reference, sets["forget"])
    forget = -functional.logsigmoid(-beta * (ratio - ratio_of_reference)).mean() * 2 / beta
    return forget + policy(**sets["retain"]._asdict()).loss


def dpo(
    policy: PreTrainedModel, reference: PreTrainedModel, sets: dict[str, Rows], beta: float = 0.1
) -> Tensor:
    """DPO of the alternate answers over the forget rows' own (arXiv:2305.18290, Eq. 7), cross-entropy on retain rows."""
    own, alternate = (_log_ratio(policy, reference, sets[name]) for name in ("forget", "alternate"))
    forget = -functional.logsigmoid(beta * (alternate - own)).mean()
    return forget + policy(**sets["retain"]._asdict()).loss


def kto(
    policy: PreTrainedModel, reference: PreTrainedModel, sets: dict[str, Rows], beta: float = 0.1
) -> Tensor:
    """KTO of forget rows, with mismatched answers as the baseline (arXiv:2402.01306), cross-entropy on retain rows."""
    with torch.no_grad():
        baseline = _log_ratio(policy, reference, sets["mismatched"]).mean().clamp(min=0)
    forget = torch.sigmoid(beta * (_log_ratio(policy, reference, sets["forget"]) - baseline)).mean()
    return forget + policy(**sets["retain"]._asdict()).loss


def _log_ratio(policy: PreTrainedModel, reference: PreTrainedModel, rows: Rows) -> Tensor:
    """[B] summed over the answer."""
    with torch.no_grad():
        of_reference = _log_probability(reference, rows)
    return _log_probability(policy, rows) - of_reference


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
