"""Engine: computes losses and their gradients from hidden states, with the logits of one group at a time.

It works with any trainer: call `sequence_objective`, or `joint_objective` for several losses at once, then
`loss.backward()`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dipo_pl.errors import check_count
from dipo_pl.losses.base import Loss, Section
from dipo_pl.losses.entropy import Entropy
from dipo_pl.losses.grouped_loss import GroupedLoss
from dipo_pl.losses.heads import HeadGradients, Heads, zeros_float32
from dipo_pl.losses.selection import with_selection
from dipo_pl.models.head import OutputHead, default_token_budget


@dataclass
class Objective:
    """A loss, and values to be logged with it.

    Attributes:
        loss: scalar float32, differentiable in the hidden states and the head.
        parts: detached scalars by name.
    """

    loss: Tensor
    parts: dict[str, Tensor]


@dataclass
class JointObjective:
    """The weighted sum of several losses.

    Attributes:
        loss: scalar float32, differentiable in the hidden states and the head.
        sections: by name, each section's own loss without its weight, detached, and its parts.
    """

    loss: Tensor
    sections: dict[str, Objective]


def sequence_objective(
    states: Tensor,
    targets: Tensor,
    lengths: Sequence[int],
    head: OutputHead,
    loss: Loss,
    reference_states: Tensor | None = None,
    reference_head: OutputHead | None = None,
    token_budget: int | None = None,
) -> Objective:
    """Return `loss` on one section; arguments and errors are those of `Section` and `joint_objective`."""
    section = Section(loss, states, targets, lengths, reference_states)
    joint = joint_objective({"": section}, head, reference_head, token_budget)
    return Objective(joint.loss, joint.sections[""].parts)


def joint_objective(
    sections: Mapping[str, Section],
    head: OutputHead,
    reference_head: OutputHead | None = None,
    token_budget: int | None = None,
) -> JointObjective:
    """Return the weighted sum of several losses, with the logits of at most `token_budget` positions at a time.

    Groups of whole rows are evaluated one after another; each group's gradients on the hidden states and on the
    head are computed at once, and only they are kept. A row longer than the budget is evaluated in pieces; where the
    head is trained twice, first its sum, then its gradients. A token mean needs no sums, and is evaluated once.

    Args:
        sections: by name.
        head: the policy's.
        reference_head: the reference's, where a loss of logits uses it.
        token_budget: positions whose logits exist at a time; None is `default_token_budget`.

    Raises:
        ValueError: shapes disagree, the budget is below 1, or a reference is missing.
        RuntimeError: from backward(), if it is called twice: gradients are scaled in place.
    """
    check_count("token_budget", token_budget)
    for section in sections.values():
        _check(section, reference_head)
    on_logits = any(section.loss.layer is None for section in sections.values())
    heads = Heads(head, reference_head).converted(OutputHead.gathered) if on_logits else Heads(head, None)
    budget = token_budget or default_token_budget(head.weight.device)
    grouped = {
        name: GroupedLoss(with_selection(section, heads, budget), budget)
        for name, section in sections.items()
    }
    entropies = {
        name: GroupedLoss(_of_entropy(section), budget)
        for name, section in sections.items()
        if section.entropy
    }
    losses = [*grouped.values(), *entropies.values()]
    # Autograd follows only what is an argument.
    tensors = (heads.policy.weight, heads.policy.bias, *(each.states for each in losses))
    loss = _JointLoss.apply(heads, losses, *tensors)  # type: ignore[no-untyped-call]
    assert isinstance(loss, Tensor)
    found = {name: Objective(each.loss, each.parts) for name, each in grouped.items()}
    for name, entropy in entropies.items():
        found[name].parts["entropy"] = entropy.loss
    return JointObjective(loss, found)


def _of_entropy(section: Section) -> Section:
    """Return the section of the entropy of the rows' own sequences, without their companions."""
    rows = len(section.lengths) // (1 + len(section.loss.companions))
    lengths = section.lengths[:rows]
    own = slice(0, sum(lengths))
    return Section(Entropy(), section.states[own], section.targets[own], lengths, weight=section.entropy)


def _check(section: Section, reference_head: OutputHead | None) -> None:
    loss, count = section.loss, len(section.states)
    if sum(section.lengths) != count or len(section.targets) != count:
        raise ValueError(
            f"{count} states, {len(section.targets)} targets and {sum(section.lengths)} positions in `lengths`"
        )
    if section.reference_states is not None and len(section.reference_states) != count:
        raise ValueError(f"{count} states and {len(section.reference_states)} reference states")
    members = 1 + len(loss.companions)
    if len(section.lengths) % members:
        raise ValueError(
            f"{type(loss).__name__} needs {members} sequences a row (got {len(section.lengths)})"
        )
    if section.entropy and loss.layer is not None:
        raise ValueError(f"{type(loss).__name__} acts on a layer, which has no entropy")
    if section.until is not None and (loss.layer is not None or loss.selects):
        raise ValueError(
            f"{type(loss).__name__} has no weights of rows: it acts on a layer, or selects positions"
        )
    missing = section.reference_states is None or (loss.layer is None and reference_head is None)
    if loss.uses_reference and missing:
        raise ValueError(f"{type(loss).__name__} needs reference_states and reference_head")


class _JointLoss(torch.autograd.Function):
    """Computes gradients in the forward pass, while logits are there; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        heads: Heads,
        losses: Sequence[GroupedLoss],
        weight: Tensor,
        bias: Tensor | None,
        *states: Tensor,
    ) -> Tensor:
        device = weight.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            # Both rounded alike, so that equal models have equal logits.
            heads = heads.converted(lambda head: head.cast(dtype))
        on_logits = any(each.on_logits for each in losses)
        wants_weight, wants_bias, *wants_states = ctx.needs_input_grad[2:]
        head_gradients = HeadGradients(
            weight if wants_weight and on_logits else None, bias if wants_bias and on_logits else None
        )
        by_states = [
            zeros_float32(each if wanted else None) for each, wanted in zip(states, wants_states, strict=True)
        ]
        # Means are divided at the end, in float32: a factor 1 / 3 would be rounded in bfloat16 products.
        ctx.scale = max(each.count for each in losses)
        total = torch.zeros((), dtype=torch.float32, device=weight.device)
        with torch.autocast(device, enabled=False):
            for loss, gradient in zip(losses, by_states, strict=True):
                total = total + loss.evaluate(heads, head_gradients, gradient, ctx.scale)
        ctx.gradients = [head_gradients.weight, head_gradients.bias, *by_states]
        ctx.dtypes = [None if each is None else each.dtype for each in (weight, bias, *states)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_of_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "backward() a second time: the gradients have been handed over; evaluate again"
            )
        factor = gradient_of_loss / ctx.scale
        # In place: a second [V, d] would be the largest tensor of a small model's step.
        scaled = [
            None if each is None else each.mul_(factor).to(dtype)
            for each, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return (None, None, *scaled)
