"""DiPO with other constructors and strengths, at the reference, and under constants on the logits."""

import math
from dataclasses import replace

import pytest
import torch
from loss_definitions import FirstTokens, dipo, keep_first, keep_top, modulated, modulation
from loss_problems import TOLERANCE, close, compare, draw, gradients

from dipo_pl.errors import InputError
from dipo_pl.losses import DiPO, DiPORetain
from dipo_pl.preferences.constructors import LogitModulation, Pair, PreferenceConstructor
from dipo_pl.preferences.filters import AllOf, RelativeProbability, TopFraction

both = pytest.mark.parametrize("kind", [DiPO, DiPORetain])


@pytest.mark.parametrize("beta", [0.05, 2.0])
@pytest.mark.parametrize("alpha", [0.1, 1.0, 3.0])
def test_other_strengths(alpha, beta):
    loss = DiPO(beta, LogitModulation(TopFraction(0.05), alpha))
    # round(0.05 * 53) = 3
    compare(draw([4, 1, 6], 53), dipo(loss, modulated(keep_top(0.05), alpha), kept=3), (1, 5, 1000))


def test_rank_and_relative_filter_together():
    def keep(z):
        relative = [math.exp(value - max(z)) >= 0.3 for value in z]
        return [a and b for a, b in zip(keep_top(0.2)(z), relative, strict=True)]

    constructor = LogitModulation(AllOf([TopFraction(0.2), RelativeProbability(0.3)]))
    compare(draw([5, 3], 41), dipo(DiPO(0.4, constructor), modulated(keep)))


@both
def test_raw_logits_where_they_are_positive(kind):
    """center=False is the paper's letter; a bias of 40 makes every logit positive."""
    problem = draw([3, 4], 31)
    problem.bias += 40
    loss = kind(0.1, LogitModulation(TopFraction(0.1), alpha=0.05, center=False))
    compare(problem, dipo(loss, modulated(keep_top(0.1), 0.05, center=False)))


def test_raw_logits_that_are_negative_are_refused():
    """GPT-2's are all negative: uncentered, what should be forgotten would be amplified."""
    problem = draw([5, 3])
    problem.bias -= 100
    loss = DiPO(0.3, LogitModulation(TopFraction(0.2), center=False))
    with pytest.raises(InputError, match=r"a kept logit is -\d+"):
        problem.to(torch.float32).package(loss)


class Temperatures(PreferenceConstructor):
    """A constructor of one's own that gives only the pair: flatter and sharper."""

    def pair(self, logits, targets):
        return Pair((logits / 2).softmax(-1), (logits * 2).softmax(-1))


@both
def test_a_constructor_of_ones_own(kind):
    compare(
        draw([5, 3]), dipo(kind(0.3, Temperatures()), lambda z: ((z / 2).softmax(-1), (z * 2).softmax(-1)))
    )


@both
def test_tied_head_gets_the_embeddings_gradient_too(kind):
    """The states are a function of the head's own weight, as in a model with tied embeddings."""
    problem = draw([5, 3], bias=False, spread=0.7)
    definition = dipo(kind(0.3, modulation()), modulated(keep_top(0.2)))
    mixing = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = problem.to(torch.float32), problem.to(torch.float64)

    def states(weight):
        return torch.tanh(weight[torch.arange(8).remainder(6)] @ mixing.to(weight.dtype))

    (expected,) = gradients(theirs.definition(definition, states(theirs.weight))[0], [theirs.weight])
    for budget in (2, 1000):
        value = ours.package(definition.loss, budget, states(ours.weight)).loss
        close(gradients(value, [ours.weight])[0], expected, 2e-5)


def test_float16_keeps_small_gradients():
    """A loss scaler multiplies the finished loss: what is lost in float16 before that stays lost.

    Of 2,001 almost equally probable tokens each has a gradient of about 0.025 / 8 / 2001 = 1.6e-6, and
    float16's smallest number is 6e-8.
    """
    problem = draw([1] * 8, 2001, bias=False, spread=0.3)
    definition = dipo(DiPO(0.05, LogitModulation(FirstTokens(1000))), modulated(keep_first(1000)))
    ours, theirs = problem.to(torch.float32), problem.to(torch.float64)
    with torch.autocast("cpu", torch.float16):
        value = ours.package(definition.loss, states=ours.states.to(torch.float16)).loss * 2**16
    expected = gradients(theirs.definition(definition)[0], theirs.leaves)
    for one, other in zip(gradients(value, ours.leaves), expected, strict=True):
        limit = TOLERANCE[torch.float16] * float(other.abs().max())
        torch.testing.assert_close(one.double() / 2**16, other, rtol=0, atol=limit)


@pytest.mark.parametrize("budget", [2, 1000])
@both
def test_at_the_reference_the_loss_is_ln_2(kind, budget):
    """All four divergences cancel, yet the gradient is -beta sigma(0) (w - l) / B."""
    problem = draw([5, 3]).at_the_reference().to(torch.float32)
    objective = problem.package(kind(0.3, modulation()), budget)
    assert objective.loss.item() == pytest.approx(math.log(2), abs=1e-7)
    assert objective.parts["margin"] == objective.parts["margin_positive"] == 0
    expected = []
    for z in problem.to(torch.float64).logits().detach():
        forgetting, remembering = modulated(keep_top(0.2))(z)
        preferred = 1 if kind is DiPO else -1
        expected.append(-0.3 * 0.5 * preferred * (forgetting - remembering) / 2)
    expected = torch.stack(expected)
    by_states, _, by_bias = gradients(objective.loss, problem.leaves)
    close(by_bias, expected.sum(0))
    close(by_states, expected @ problem.weight.detach().double())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_at_the_reference_under_autocast(half):
    """Policy and reference are rounded alike, so that training starts at ln 2 exactly there too."""
    problem = draw([5, 30], 300).at_the_reference().to(torch.float32)
    with torch.autocast("cpu", half):
        objective = problem.package(DiPO())
    assert float(objective.parts["margin"]) == 0.0
    assert objective.loss.item() == pytest.approx(math.log(2), abs=1e-7)


@both
def test_one_step_moves_towards_the_preferred_distribution(kind):
    """On forget rows the confident tokens lose probability, on retain rows they gain it."""
    problem = draw([4], 41, bias=False).to(torch.float32)
    constructor = LogitModulation(TopFraction(0.1))
    by_states, _ = gradients(problem.package(kind(0.1, constructor)).loss, problem.leaves)
    with torch.no_grad():
        before = problem.states @ problem.weight.T
        after = (problem.states - 0.1 * by_states) @ problem.weight.T
        kept = constructor.filter.keep(before, problem.targets)
        change = (after.softmax(-1) - before.softmax(-1)).masked_fill(~kept, 0).sum(-1)
    assert ((change < 0) if kind is DiPO else (change > 0)).all()


@both
def test_a_margin_a_token_knows_no_length(kind):
    """The same position 30 times is as good as once; of the sum, 30 times the margin counts."""
    once = draw([1], 41)
    often = replace(once, lengths=[30], targets=once.targets.repeat(30), states=once.states.repeat(30, 1),
                    reference_states=once.reference_states.repeat(30, 1))  # fmt: skip
    one, many = once.to(torch.float32), often.to(torch.float32)

    def found(problem, loss):
        objective = problem.package(loss)
        return (
            objective.loss.item(),
            objective.parts["margin"].item(),
            gradients(objective.loss, problem.leaves)[1],
        )

    (loss, margin, by_weight), (same_loss, same_margin, same_by_weight) = (
        found(each, kind(1.5, modulation(), per_token=True)) for each in (one, many)
    )
    assert (same_loss, same_margin) == (pytest.approx(loss, rel=1e-5), pytest.approx(margin, rel=1e-5))
    close(same_by_weight, by_weight)
    assert found(many, kind(1.5, modulation()))[1] == pytest.approx(30 * margin, rel=1e-5)
    assert found(many, kind(1.5 / 30, modulation()))[0] == pytest.approx(loss, rel=1e-5)


def test_forget_and_retain_are_mirror_images():
    """One's margin is the other's, negated: -log sigma(x) and -log sigma(-x) = -log sigma(x) + x."""
    problem = draw([4, 3], 41).to(torch.float32)
    forget, retain = (problem.package(kind(0.1, modulation(0.1))) for kind in (DiPO, DiPORetain))
    margin = float(forget.parts["margin"])
    assert margin == pytest.approx(-float(retain.parts["margin"]), rel=1e-6)
    assert (retain.loss - forget.loss).item() == pytest.approx(0.1 * margin, rel=1e-4)


def shifted(problem, offsets, reference_offsets):
    """The same model with a constant added to all logits of a position: a column of ones in the head."""

    def widened(states, weight, constants):
        ones = torch.ones(len(weight), 1, dtype=weight.dtype)
        return torch.cat([states, constants[:, None]], 1), torch.cat([weight, ones], 1)

    states, weight = widened(problem.states, problem.weight, offsets)
    reference = widened(problem.reference_states, problem.reference_weight, reference_offsets)
    return replace(
        problem, states=states, weight=weight, reference_states=reference[0], reference_weight=reference[1]
    )


@both
def test_gauge(kind):
    """Logits mean the same with any constant added a position: so do value, gradients and kept tokens."""
    problem = draw([5, 3], bias=False)
    generator = torch.Generator().manual_seed(3)
    offsets = -40 + 10 * torch.randn(8, generator=generator, dtype=torch.float64)
    moved = shifted(problem, offsets, 25 - offsets).to(torch.float32)
    problem = problem.to(torch.float32)
    loss = kind(0.3, LogitModulation(AllOf([TopFraction(0.2), RelativeProbability(0.1)])))
    plain, shift = problem.package(loss), moved.package(loss)
    assert shift.loss.item() == pytest.approx(plain.loss.item(), rel=2e-5)
    assert float(shift.parts["kept"]) == float(plain.parts["kept"])
    by_states, by_weight = gradients(plain.loss, problem.leaves)
    shifted_by_states, shifted_by_weight = gradients(shift.loss, moved.leaves)
    close(shifted_by_states[:, :-1], by_states, 1e-4)
    close(shifted_by_weight[:, :-1], by_weight, 1e-4)
    # The constant itself is not learned.
    assert float(shifted_by_states[:, -1].abs().max()) < 1e-6 * float(by_states.abs().max())
