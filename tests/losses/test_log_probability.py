"""NPO, gradient ascent and cross-entropy in the engine against a slow float64 loop: values and gradients."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from dipo_pl.errors import InputError
from dipo_pl.losses import NPO, CrossEntropy, GradientAscent
from dipo_pl.losses.engine import sequence_objective
from dipo_pl.models.head import OutputHead

# Largest error allowed, as a share of the largest entry of the float64 result, or of 0.1 where that is
# less: log p is a difference of numbers of order 1, known to 1e-7 however small it is itself.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2}
# (sequences, longest sequence, vocabulary): positions of each sequence.
LENGTHS = {(1, 1, 2): [1], (3, 7, 11): [7, 3, 5], (2, 5, 257): [5, 2]}


# The definitions. Nothing below, up to `Problem`, uses the package.


def log_probability(state, weight, bias, target):
    """log p(target), in nats, of one position."""
    z = weight @ state
    if bias is not None:
        z = z + bias
    return torch.log(torch.exp(z - z.max())[target] / torch.exp(z - z.max()).sum())


def sequence_sums(problem, reference=False):
    """The answers' log-probabilities; None for a sequence that has no answer."""
    prefix = "reference_" if reference else ""
    states, weight, bias = (
        getattr(problem, prefix + "states"),
        getattr(problem, prefix + "weight"),
        getattr(problem, prefix + "bias"),
    )
    sums, start = [], 0
    for length in problem.lengths:
        total = torch.zeros((), dtype=torch.float64)
        for t in range(start, start + length):
            total = total + log_probability(states[t], weight, bias, int(problem.targets[t]))
        sums.append(total if length else None)
        start += length
    return sums


def loop_npo(problem, beta):
    pairs = zip(sequence_sums(problem), sequence_sums(problem, reference=True), strict=True)
    losses = [
        2 / beta * torch.log(1 + torch.exp(beta * (policy - reference)))
        for policy, reference in pairs
        if policy is not None
    ]
    return sum(losses, torch.zeros((), dtype=torch.float64)) / max(len(losses), 1)


def loop_token_mean(problem, sign):
    sums = [each for each in sequence_sums(problem) if each is not None]
    return sign * sum(sums, torch.zeros((), dtype=torch.float64)) / max(sum(problem.lengths), 1)


DEFINITIONS = {
    "NPO": (NPO(0.3), lambda problem: loop_npo(problem, 0.3)),
    "GradientAscent": (GradientAscent(), lambda problem: loop_token_mean(problem, 1)),
    "CrossEntropy": (CrossEntropy(), lambda problem: loop_token_mean(problem, -1)),
}


@dataclass
class Problem:
    """Random inputs, which the package gets in a dtype and the loop in float64."""

    states: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    reference_states: torch.Tensor
    reference_weight: torch.Tensor
    reference_bias: torch.Tensor | None
    targets: torch.Tensor
    lengths: list[int]
    head: dict = field(default_factory=dict)

    @property
    def leaves(self):
        return [each for each in (self.states, self.weight, self.bias) if each is not None]

    def to(self, dtype):
        moved = {
            name: value.detach().to(dtype)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor) and name != "targets"
        }
        problem = replace(self, **moved)
        for leaf in problem.leaves:
            leaf.requires_grad_()
        return problem

    def package(self, loss, budget=1000):
        return sequence_objective(
            self.states,
            self.targets,
            self.lengths,
            OutputHead(self.weight, self.bias),
            loss,
            self.reference_states,
            OutputHead(self.reference_weight, self.reference_bias),
            budget,
        )


def draw(lengths, vocabulary, bias=False, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    positions = sum(lengths)
    return Problem(
        normal(positions, 5),
        normal(vocabulary, 5),
        normal(vocabulary) if bias else None,
        normal(positions, 4),
        normal(vocabulary, 4),
        normal(vocabulary) if bias else None,
        torch.randint(vocabulary, (positions,), generator=generator),
        list(lengths),
    )


def close(ours, theirs, tolerance):
    largest = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
    limit = tolerance * max(largest, 0.1)
    torch.testing.assert_close(ours.detach().double(), theirs.detach(), rtol=0, atol=limit)


def compare(problem, loss, definition, dtype=torch.float32, budget=1000):
    ours = problem.to(dtype)
    # Inputs rounded to dtype, so that only the arithmetic differs.
    theirs = ours.to(torch.float64)
    objective, value = ours.package(loss, budget), definition(theirs)
    assert objective.loss.dtype == torch.float32
    close(objective.loss, value, TOLERANCE[dtype])
    objective.loss.backward()
    value.backward()
    for our_leaf, their_leaf in zip(ours.leaves, theirs.leaves, strict=True):
        assert our_leaf.grad.dtype == dtype
        close(our_leaf.grad, their_leaf.grad, TOLERANCE[dtype])
    return objective


@pytest.mark.parametrize("budget", ["one", "uneven", "sequence", "exact", "oversize"])
@pytest.mark.parametrize("shape", LENGTHS, ids=str)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_matches_the_definition(name, shape, budget):
    lengths = LENGTHS[shape]
    tokens = {"one": 1, "uneven": 3, "sequence": max(lengths), "exact": sum(lengths), "oversize": 1000}
    compare(draw(lengths, shape[2], bias=True), *DEFINITIONS[name], budget=tokens[budget])


@pytest.mark.parametrize("budget", [1, 4, 5, 1000])
@pytest.mark.parametrize("lengths", [[0, 4, 0, 0, 3, 5, 0], [4, 3, 0, 5], [0, 0, 12]], ids=str)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_sequences_without_answer_tokens_are_not_counted(name, lengths, budget):
    compare(draw(lengths, 23), *DEFINITIONS[name], budget=budget)


@pytest.mark.parametrize("lengths", [[], [0, 0, 0]], ids=str)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_nothing_to_learn_from_is_exactly_zero(name, lengths):
    problem = draw(lengths, 11, bias=True).to(torch.float32)
    objective = problem.package(DEFINITIONS[name][0])
    assert objective.loss.item() == 0.0
    objective.loss.backward()
    for leaf in problem.leaves:
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("budget", [1, 3, 1000])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_bfloat16_model(name, budget):
    compare(draw([5, 3, 6], 37, bias=True), *DEFINITIONS[name], dtype=torch.bfloat16, budget=budget)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_autocast(name):
    loss, definition = DEFINITIONS[name]
    problem = draw([5, 3, 6], 37)
    ours, theirs = problem.to(torch.float32), problem.to(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        objective = ours.package(loss)
    objective.loss.backward()
    value = definition(theirs)
    value.backward()
    close(objective.loss, value, TOLERANCE[torch.bfloat16])
    for our_leaf, their_leaf in zip(ours.leaves, theirs.leaves, strict=True):
        close(our_leaf.grad, their_leaf.grad, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("budget", [2, 1000])
@pytest.mark.parametrize("beta", [0.1, 2.5])
def test_npo_at_the_reference_is_two_ln_2_over_beta(beta, budget):
    """13.8629 for beta 0.1; the gradient there is that of the mean sequence sum: 2/beta * 1/2 * beta = 1."""
    problem = draw([5, 3], 29)
    problem = replace(problem, reference_states=problem.states, reference_weight=problem.weight)
    ours, theirs = problem.to(torch.float32), problem.to(torch.float64)
    objective = ours.package(NPO(beta), budget)
    assert objective.loss.item() == pytest.approx(2 * math.log(2) / beta, rel=1e-6)
    assert objective.parts["log_ratio"].item() == pytest.approx(0, abs=1e-5)
    objective.loss.backward()
    (sum(sequence_sums(theirs)) / 2).backward()
    close(ours.weight.grad, theirs.weight.grad, TOLERANCE[torch.float32])


def test_npo_without_inverse_temperature_is_gradient_ascent():
    """beta -> 0: the gradient tends to that of the mean over sequences of log p(y), whatever the reference."""
    problem = draw([5, 3, 4], 29)
    theirs = problem.to(torch.float64)
    (sum(sequence_sums(theirs)) / 3).backward()
    distances = []
    for beta in (1e-2, 1e-3, 1e-4):
        ours = problem.to(torch.float32)
        ours.package(NPO(beta)).loss.backward()
        difference = (ours.weight.grad.double() - theirs.weight.grad).abs().max()
        distances.append(float(difference / theirs.weight.grad.abs().max()))
    assert distances[0] > 5 * distances[1] > 25 * distances[2]
    assert distances[2] < 1e-3


def test_npo_default_is_the_papers():
    assert NPO().beta == 0.1


def test_npo_watches_the_mean_log_ratio():
    problem = draw([5, 0, 3], 29)
    theirs = problem.to(torch.float64)
    policy, reference = sequence_sums(theirs), sequence_sums(theirs, reference=True)
    expected = sum(float((policy[i] - reference[i]).detach()) for i in (0, 2)) / 2
    for budget in (2, 1000):
        parts = problem.to(torch.float32).package(NPO(), budget).parts
        assert parts["log_ratio"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("direction", [1, -1])
def test_npo_with_log_ratios_of_thousands_of_nats(direction):
    problem = draw([6, 4], 23).to(torch.float32)
    with torch.no_grad():
        (problem.states if direction < 0 else problem.reference_states).mul_(2000)
    objective = problem.package(NPO(1.0))
    assert objective.parts["log_ratio"].item() * direction > 1000
    objective.loss.backward()
    for value in (objective.loss, *(leaf.grad for leaf in problem.leaves)):
        assert torch.isfinite(value).all()


def test_known_token_means():
    """Three positions where all of 8 tokens are equally probable: ln 8 nats a token, whatever the lengths."""
    problem = draw([2, 1], 8).to(torch.float32)
    with torch.no_grad():
        problem.weight.zero_()
    assert problem.package(CrossEntropy()).loss.item() == pytest.approx(math.log(8), rel=1e-6)
    assert problem.package(GradientAscent()).loss.item() == pytest.approx(-math.log(8), rel=1e-6)


def test_gradient_ascent_is_cross_entropy_turned_round():
    problem = draw([5, 3], 29)
    down, up = problem.to(torch.float32), problem.to(torch.float32)
    descent, ascent = down.package(CrossEntropy()), up.package(GradientAscent())
    assert descent.loss.item() == -ascent.loss.item()
    descent.loss.backward()
    ascent.loss.backward()
    for one, other in zip(down.leaves, up.leaves, strict=True):
        assert torch.equal(one.grad, -other.grad)


@pytest.mark.parametrize("beta", [0, 0.0, -0.1, math.nan, math.inf])
def test_beta_is_refused(beta):
    with pytest.raises(InputError, match=rf"^NPO\.beta must be a finite number > 0, got {beta}$"):
        NPO(beta)
