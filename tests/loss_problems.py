"""Random problems on which a loss of the package is compared with its definition."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from loss_definitions import Definition
from torch import Tensor

from dipo_pl.losses.base import Loss, Section
from dipo_pl.losses.engine import Objective, joint_objective
from dipo_pl.models.head import OutputHead

# Largest error allowed, as a share of the largest entry of the float64 result, or of 0.1 where that is less:
# log p is a difference of numbers of order 1, known to 1e-7 however small it is itself.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@dataclass
class Problem:
    """Random inputs, which the package is given in a dtype and the definition in float64.

    Attributes:
        frozen: the head is not trained.
        shared: the reference has the policy's own head.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None
    reference_states: Tensor
    reference_weight: Tensor
    reference_bias: Tensor | None
    targets: Tensor
    lengths: list[int]
    head: dict[str, Any] = field(default_factory=dict)
    frozen: bool = False
    shared: bool = False

    @property
    def leaves(self) -> list[Tensor]:
        leaves = [self.states] if self.frozen else [self.states, self.weight, self.bias]
        return [each for each in leaves if each is not None]

    def to(self, dtype: torch.dtype) -> "Problem":
        moved = {
            name: value.detach().to(dtype, copy=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name != "targets"
        }
        problem = replace(self, **moved)
        if self.shared:
            problem.reference_weight, problem.reference_bias = problem.weight, problem.bias
        for leaf in problem.leaves:
            leaf.requires_grad_()
        return problem

    def of_sequences(self, chosen: list[int]) -> "Problem":
        """The same with these sequences alone, in this order."""
        starts = [sum(self.lengths[:number]) for number in range(len(self.lengths))]
        index = [starts[number] + t for number in chosen for t in range(self.lengths[number])]
        return replace(
            self,
            states=self.states[index],
            reference_states=self.reference_states[index],
            targets=self.targets[index],
            lengths=[self.lengths[number] for number in chosen],
        )

    def at_the_reference(self) -> "Problem":
        return replace(
            self, reference_states=self.states, reference_weight=self.weight, reference_bias=self.bias
        )

    def section(self, loss: Loss, weight: float = 1.0, states: Tensor | None = None) -> Section:
        own = self.states if states is None else states
        return Section(loss, own, self.targets, self.lengths, self.reference_states, weight)

    @property
    def heads(self) -> tuple[OutputHead, OutputHead]:
        return (
            OutputHead(self.weight, self.bias, **self.head),
            OutputHead(self.reference_weight, self.reference_bias, **self.head),
        )

    def package(self, loss: Loss, budget: int | None = 1000, states: Tensor | None = None) -> Objective:
        joint = joint_objective({"": self.section(loss, states=states)}, *self.heads, budget)
        return Objective(joint.loss, joint.sections[""].parts)

    def logits(self, reference: bool = False, states: Tensor | None = None) -> Tensor:
        own = (self.states if states is None else states), self.weight, self.bias
        given = (self.reference_states, self.reference_weight, self.reference_bias) if reference else own
        z = given[0] @ given[1].T
        z = (z if given[2] is None else z + given[2]) * self.head.get("scale", 1.0)
        cap = self.head.get("softcap")
        return z if cap is None else cap * torch.tanh(z / cap)

    def definition(self, definition: Definition, states: Tensor | None = None) -> tuple[Tensor, dict]:
        if definition.loss.layer is not None:
            z, z_ref = self.states if states is None else states, self.reference_states
        else:
            z, z_ref = self.logits(states=states), self.logits(reference=True)
        return definition.value(z, z_ref, self.targets, self.lengths)


def draw(
    lengths: list[int],
    vocabulary: int = 29,
    bias: bool = True,
    seed: int = 0,
    spread: float = 1.0,
    reference_width: int = 4,
    **head: Any,
) -> Problem:
    """Draw logits with a spread of a few nats; the reference's have another width and other weights."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * spread

    positions = sum(lengths)
    return Problem(
        normal(positions, 5),
        normal(vocabulary, 5),
        normal(vocabulary) if bias else None,
        normal(positions, reference_width),
        normal(vocabulary, reference_width),
        normal(vocabulary) if bias else None,
        torch.randint(vocabulary, (positions,), generator=generator),
        list(lengths),
        head,
    )


def draw_for(definition: Definition, *given: Any, **options: Any) -> Problem:
    """Draw a problem for a loss: hidden states of one layer are as wide in both models."""
    return draw(*given, **({"reference_width": 5} if definition.loss.layer is not None else {}) | options)


def close(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE[torch.float32]) -> None:
    largest = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
    torch.testing.assert_close(
        ours.detach().double(), theirs.detach().double(), rtol=0, atol=tolerance * max(largest, 0.1)
    )


def gradients(value: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients by all leaves; 0 where a loss on a layer leaves the head alone."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)


def compare(
    problem: Problem,
    definition: Definition,
    budgets: tuple[int, ...] = (1, 3, 1000),
    dtype: torch.dtype = torch.float32,
    loss: Loss | None = None,
) -> None:
    """Compare value, gradients and parts of the package in `dtype` with the definition in float64."""
    ours = problem.to(dtype)
    # Inputs rounded to dtype, so that only the arithmetic differs.
    theirs = ours.to(torch.float64)
    value, parts = theirs.definition(definition)
    expected = gradients(value, theirs.leaves)
    for budget in budgets:
        objective = ours.package(loss or definition.loss, budget)
        assert (objective.loss.dtype, objective.loss.shape) == (torch.float32, ())
        close(objective.loss, value, TOLERANCE[dtype])
        for name, part in parts.items():
            close(objective.parts[name], torch.tensor(part), 10 * TOLERANCE[dtype])
        for leaf, ours_by, theirs_by in zip(
            ours.leaves, gradients(objective.loss, ours.leaves), expected, strict=True
        ):
            assert ours_by.dtype == leaf.dtype
            close(ours_by, theirs_by, TOLERANCE[dtype])
