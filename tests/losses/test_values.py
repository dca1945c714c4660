"""Losses at inputs where their value or gradient is known by hand, and in the limits that their docstrings name."""

import math
from dataclasses import replace

import pytest
import torch
from loss_definitions import DEFINITIONS, baseline, sigma
from loss_definitions import log_p as log_probability
from loss_definitions import log_ratio as log_probability_ratio
from loss_problems import close, compare, draw, gradients

from dipo_pl.losses import (
    CEU,
    DPO,
    KTO,
    NPO,
    PDU,
    RMU,
    SHRED,
    UNDIAL,
    WGA,
    CrossEntropy,
    Entropy,
    GradientAscent,
    InvertedHinge,
    MaximumEntropy,
    ReferenceKL,
    RMURetain,
    SatImp,
    SimNPO,
)

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)
# Entropy of (3/4, 1/4).
ENTROPY = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
# Loss, logits, target, reference's logits; term and its gradient.
VALUES = {
    # Reference (1/2, 1/2), policy (3/4, 1/4); a constant on the logits is nothing.
    "ReferenceKL of a fair coin": (ReferenceKL(), [LN3, 0], 0, [-7, -7], math.log(4 / 3) / 2, [0.25, -0.25]),
    "ReferenceKL, shifted": (ReferenceKL(), [LN3 + 40, 40], 0, [-7, -7], math.log(4 / 3) / 2, [0.25, -0.25]),
    # Reference (3/4, 1/4), policy (1/2, 1/2).
    "UNDIAL without adjustment": (UNDIAL(0.0), [1, 1], 0, [LN3, 0], LN2, [-0.25, 0.25]),
    # Token 2 of three equal ones is e^-beta as likely as the others: the minimum, which is the entropy.
    "UNDIAL at its minimum": (UNDIAL(LN2), [0, 0, -LN2], 2, [5, 5, 5], -0.8 * math.log(0.4) - 0.2 * math.log(0.2),
                              [0, 0, 0]),
    # p_ref(y) = 1 in float32: the others are imitated in the proportions that they still have.
    "UNDIAL, certain": (UNDIAL(60.0), [0, 0, 0], 0, [30, LN3, 0], LN3, [1 / 3, 1 / 3 - 3 / 4, 1 / 3 - 1 / 4]),
    # The gradient of p itself, p (onehot - p).
    "WGA": (WGA(), [LN3, 0], 0, None, 0.75 * math.log(0.75), [3 / 16, -3 / 16]),
    # p = (1/2, 3/8, 1/8): the entropy of (3/4, 1/4) plus ln 2, and p_0 (1, -3/4, -1/4).
    "CEU": (CEU(), [LN4, LN3, 0], 0, None, ENTROPY + LN2, [0.5, -0.375, -0.125]),
    # p_0 = 1 in float32: the whole of it is to move.
    "CEU, certain": (CEU(), [30, LN3, 0], 0, None, ENTROPY + 30 - LN4, [1, -0.75, -0.25]),
    "PDU": (PDU(), [3, 0], 1, None, 2.25, [1.5, -1.5]),
    "PDU, shifted": (PDU(), [-47, -50], 1, None, 2.25, [1.5, -1.5]),
    "PDU of equal logits": (PDU(), [7] * 8, 0, None, 0, None),
    "MaximumEntropy of equal logits": (MaximumEntropy(), [4] * 8, 0, None, 0, [0] * 8),
    "MaximumEntropy": (MaximumEntropy(), [LN3, 0], 0, None, LN2 - ENTROPY, [3 / 16 * LN3, -3 / 16 * LN3]),
    "MaximumEntropy, certain": (MaximumEntropy(), [300, 0, 0, 0], 0, None, LN4, None),
    "MaximumEntropy, reversed, of equal logits": (MaximumEntropy(True), [4] * 8, 0, None, 0, [0] * 8),
    "MaximumEntropy, reversed": (MaximumEntropy(True), [LN3, 0], 0, None, -LN2 - math.log(3 / 16) / 2, [0.25, -0.25]),
    "CrossEntropy of equal logits": (CrossEntropy(), [1] * 8, 3, None, math.log(8), None),
    "GradientAscent of equal logits": (GradientAscent(), [1] * 8, 3, None, -math.log(8), None),
    "Entropy of equal logits": (Entropy(), [4] * 8, 0, None, math.log(8), [0] * 8),
    "Entropy": (Entropy(), [LN3 + 9, 9], 0, None, ENTROPY, [-3 / 16 * LN3, 3 / 16 * LN3]),
    # p = (1/2, 3/8, 1/8): the gradients of p_0 and of p_1, one minus the other.
    "InvertedHinge": (InvertedHinge(), [LN4, LN3, 0], 0, None, 9 / 8, [28 / 64, -27 / 64, -1 / 64]),
    "InvertedHinge of another token": (InvertedHinge(), [LN4, LN3, 0], 1, None, 7 / 8, [-28 / 64, 27 / 64, 1 / 64]),
    "InvertedHinge, certain": (InvertedHinge(), [300, 0, 0], 0, None, 2, [0, 0, 0]),
    "InvertedHinge, forgotten": (InvertedHinge(), [0, 300, 0], 0, None, 0, [0, 0, 0]),
    # The reference without its certain token is (3/4, 1/4); with it, at a position that is not to be forgotten, (1, 0, 0).
    "SHRED": (SHRED(), [0, 0, 0], 0, [60, LN3, 0], LN3 - ENTROPY, [1 / 3, 1 / 3 - 3 / 4, 1 / 3 - 1 / 4]),
    "SHRED at an anchor": (SHRED(), [0, 0, 0], -1, [60, LN3, 0], LN3, [1 / 3 - 1, 1 / 3, 1 / 3]),
    "SHRED at its minimum": (SHRED(), [-300, LN3, 0], 0, [5, LN3, 0], 0, [0, 0, 0]),
    # Token 2 is not among the two that are imitated, and neither is a target of it.
    "SHRED of two": (SHRED(top=2), [0, 0, 0], -1, [LN3, 0, -1], LN3 - ENTROPY, [1 / 3 - 3 / 4, 1 / 3 - 1 / 4, 1 / 3]),
    "SHRED of a rare one": (SHRED(top=2), [0, 0, 0], 2, [LN3, 0, -1], LN3 - ENTROPY, [1 / 3 - 3 / 4, 1 / 3 - 1 / 4, 1 / 3]),
    # From 0, c u is c away, and a reference of 2s 4 in each dimension.
    "RMU": (RMU(3.0, 0), [0] * 8, 0, None, 9 / 8, None),
    "RMURetain": (RMURetain(0), [0, 0], 0, [2, -2], 4, [-2, 2]),
    "RMURetain at the reference": (RMURetain(0), [1, 2], 0, [1, 2], 0, [0, 0]),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_known_terms(name):
    loss, logits, target, reference, value, gradient = VALUES[name]
    given = [
        None if each is None else torch.tensor([each], dtype=torch.float32) for each in (logits, reference)
    ]
    terms = loss.terms_and_gradient(given[0], torch.tensor([target]), given[1])
    assert terms.values.item() == pytest.approx(value, rel=1e-5, abs=5e-6)
    if gradient is not None:
        assert terms.gradient[0].tolist() == pytest.approx(gradient, abs=1e-6)


def test_weights_of_satimp():
    """0 at p = 0 and at p = 1; at p = 3/4 it is (3/4)^5 / 4."""
    weights = SatImp().weight(torch.tensor([-300.0, 0.0, 1e-7, math.log(0.75)])).tolist()
    assert weights == pytest.approx([0.0, 0.0, 0.0, 0.75**5 / 4])
    assert max(range(1, 100), key=lambda p: SatImp(3.0, 1.0).weight(torch.tensor([p / 100]).log())) == 75


@pytest.mark.parametrize(("share", "lengths", "selected"), [
    (0.5, [4, 1], [0, 1, 0, 1, 1]),
    (0.5, [5], [0, 1, 0, 1, 0]),
    # Of equal ones the first; at least one of each answer; nothing of an empty one.
    (0.25, [4, 1], [0, 1, 0, 0, 1]),
    (0.2, [2, 0, 3], [0, 1, 0, 1, 0]),
    (1.0, [4, 1], [1, 1, 1, 1, 1]),
])  # fmt: skip
def test_shred_selects_the_least_probable_positions(share, lengths, selected):
    log_p = torch.tensor([-1.0, -3.0, -0.1, -3.0, -0.2])
    assert SHRED(share).select(log_p, lengths).tolist() == [bool(each) for each in selected]


# At the reference, and in limits.


def sums_of(problem, term=log_probability):
    """The sum of a term over each sequence."""
    z, z_ref = problem.logits(), problem.logits(reference=True)
    terms = [term(z[t], z_ref[t], int(y)) for t, y in enumerate(problem.targets)]
    starts = [sum(problem.lengths[:number]) for number in range(len(problem.lengths))]
    return [sum(terms[start : start + n]) for start, n in zip(starts, problem.lengths, strict=True)]


@pytest.mark.parametrize("budget", [2, 1000])
@pytest.mark.parametrize("beta", [0.1, 2.5])
@pytest.mark.parametrize(("loss", "value", "combination"), [
    (NPO, lambda beta: 2 * LN2 / beta, lambda s, beta: sum(s) / 4),
    (DPO, lambda beta: LN2, lambda s, beta: beta / 2 * (s[0] + s[1] - s[2] - s[3]) / 2),
    (KTO, lambda beta: 0.5, lambda s, beta: beta / 4 * (s[0] + s[1]) / 2),
    (lambda beta: ReferenceKL(), lambda beta: 0, lambda s, beta: 0 * s[0]),
], ids=["NPO", "DPO", "KTO", "ReferenceKL"])  # fmt: skip
def test_at_the_reference(loss, value, combination, beta, budget):
    """The value, and the gradient as one of a combination of the answers' log-probabilities."""
    problem = draw([5, 3, 2, 6]).at_the_reference()
    ours, theirs = problem.to(torch.float32), problem.to(torch.float64)
    objective = ours.package(loss(beta), budget)
    assert objective.loss.item() == pytest.approx(value(beta), rel=1e-6)
    for name in objective.parts.keys() - {"margin_positive"}:
        assert objective.parts[name].item() == pytest.approx(0, abs=1e-5)
    expected = gradients(combination(sums_of(theirs), beta), theirs.leaves)
    for one, other in zip(gradients(objective.loss, ours.leaves), expected, strict=True):
        close(one, other)


@pytest.mark.parametrize(
    ("loss", "average"), [(NPO, lambda total, n: total), (SimNPO, lambda total, n: total / n)]
)
def test_without_inverse_temperature_it_is_gradient_ascent(loss, average):
    """beta -> 0: the gradient tends to that of the mean of log p(y), whatever the reference."""
    problem = draw([5, 3, 4])
    theirs = problem.to(torch.float64)
    values = [average(total, n) for total, n in zip(sums_of(theirs), problem.lengths, strict=True)]
    _, expected, _ = gradients(sum(values) / 3, theirs.leaves)
    distances = []
    for beta in (1e-2, 1e-3, 1e-4):
        ours = problem.to(torch.float32)
        _, found, _ = gradients(ours.package(loss(beta)).loss, ours.leaves)
        distances.append(float((found.double() - expected).abs().max() / expected.abs().max()))
    assert distances[0] > 5 * distances[1] > 25 * distances[2]
    assert distances[2] < 1e-3


@pytest.mark.parametrize(("one", "other", "factor"), [
    (CrossEntropy(), GradientAscent(), -1),
    (WGA(0.0), GradientAscent(), 1),
    (SatImp(0.7, 0.0), WGA(0.7), 1),
], ids=["CrossEntropy", "WGA", "SatImp"])  # fmt: skip
def test_losses_that_are_others(one, other, factor):
    problem = draw([5, 3]).to(torch.float32)
    first, second = problem.package(one).loss, problem.package(other).loss
    assert first.item() == pytest.approx(factor * second.item(), rel=1e-6)
    for ours, theirs in zip(gradients(first, problem.leaves), gradients(second, problem.leaves), strict=True):
        close(ours, factor * theirs, 1e-6)


@pytest.mark.parametrize("budget", [2, 1000])
def test_ce_u_leaves_the_first_tokens_out(budget):
    problem = draw([5, 1, 3])
    first = [0, 5, 6]
    changed = replace(problem, states=problem.states.clone(), targets=problem.targets.clone())
    changed.states[first] += 1
    changed.targets[first] = (changed.targets[first] + 1) % 29
    ours, theirs = problem.to(torch.float32), changed.to(torch.float32)
    value = ours.package(CEU(), budget).loss
    assert value.item() == theirs.package(CEU(), budget).loss.item() != 0.0
    by_states = gradients(value, ours.leaves)[0]
    assert [t for t in range(9) if not by_states[t].any()] == first
    assert ours.package(CEU(skip=0), budget).loss.item() != theirs.package(CEU(skip=0), budget).loss.item()


@pytest.mark.parametrize("gamma", [0.0, 3.0])
def test_sim_npo_of_a_certain_answer(gamma):
    """p(y) = 1: 2 ln(1 + e^gamma) / beta, whatever the lengths."""
    problem = draw([5, 3]).to(torch.float32)
    problem.targets.zero_()
    with torch.no_grad():
        problem.bias[0] = 300.0
    objective = problem.package(SimNPO(0.7, gamma))
    assert objective.loss.item() == pytest.approx(2 / 0.7 * math.log(1 + math.exp(gamma)), rel=1e-6)
    assert objective.parts["log_probability"].item() == 0


def test_sim_npo_of_the_known_codes():
    """Their margin is multiplied by beta, as open-unlearning's delta is: gamma = beta * delta."""
    beta, delta = 2.5, 0.8
    problem = draw([5, 3, 4])
    sums = zip(sums_of(problem), problem.lengths, strict=True)
    expected = sum(-2 / beta * torch.log(sigma(beta * (-total / n - delta))) for total, n in sums) / 3
    close(problem.to(torch.float32).package(SimNPO(beta, beta * delta)).loss, expected)


# Pairs of answers.


def test_dpo_of_an_answer_over_itself_has_nothing_to_learn():
    problem = draw([5, 3]).of_sequences([0, 1, 0, 1]).to(torch.float32)
    objective = problem.package(DPO(0.3))
    assert objective.loss.item() == pytest.approx(LN2, rel=1e-6)
    for gradient in gradients(objective.loss, problem.leaves[1:]):
        close(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(("loss", "moves"), [(DPO(0.3), [-1, -1, 1, 1]), (KTO(0.3), [-1, -1, 0, 0])])
def test_a_step_pulls_an_answer_and_its_companion_apart(loss, moves):
    """KTO moves the row's own answer alone."""
    problem = draw([5, 3, 2, 6])
    ours = problem.to(torch.float32)
    by_states = gradients(ours.package(loss).loss, ours.leaves)[0].double()
    step = replace(problem, states=problem.states - 1e-3 * by_states)
    changes = [float(new - old) for new, old in zip(sums_of(step), sums_of(problem), strict=True)]
    assert [math.copysign(1, each) if each else 0 for each in changes] == moves


def drifting(sign):
    """All mismatched answers more (1) or less (-1) likely than at the reference."""
    problems = (draw([5, 3, 4, 2, 6, 3], seed=seed) for seed in range(100))
    return next(
        each
        for each in problems
        if all(float(ratio) * sign > 0.5 for ratio in sums_of(each, log_probability_ratio)[3:])
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_kto_on_both_sides_of_its_clamp(sign):
    """Below zero the baseline is 0 in every micro-batch, so that the loss does not depend on them."""
    problem, loss = drifting(sign), KTO(0.3)
    compare(problem, DEFINITIONS["KTO"], (1, 8, 1000))
    ratios = sums_of(problem, log_probability_ratio)
    expected = baseline(list(zip(ratios[:3], ratios[3:], strict=True)))
    assert (expected > 0) == (sign > 0)
    ours = problem.to(torch.float32)
    assert ours.package(loss).parts["baseline"].item() == pytest.approx(expected, rel=1e-5)
    each = [ours.of_sequences([row, row + 3]).package(loss).loss.item() for row in range(3)]
    assert (sum(each) / 3 == pytest.approx(ours.package(loss).loss.item(), rel=1e-5)) == (sign < 0)


def test_kto_takes_its_baseline_as_a_constant():
    """It moves the loss, but no gradient flows into the mismatched answers."""
    problem = drifting(1).to(torch.float32)
    objective = problem.package(KTO(0.3))
    by_states = gradients(objective.loss, problem.leaves)[0]
    own = sum(problem.lengths[:3])
    assert by_states[:own].any(dim=1).all()
    assert not by_states[own:].any()
    fewer = problem.of_sequences([0, 1, 2, 3, 3, 3]).package(KTO(0.3))
    assert abs(fewer.loss.item() - objective.loss.item()) > 1e-3


OWN, COMPANIONS = slice(0, 10), slice(10, 18)


def far_away(loss, answers, likelier, lengths=(6, 4, 5, 3)):
    """Some answers thousands of nats likelier than the reference has them, or less likely."""
    problem = draw(list(lengths), 23).to(torch.float32)
    with torch.no_grad():
        # Whoever's states are large finds all but one token impossible.
        (problem.reference_states if likelier else problem.states)[answers] *= 2000
    objective = problem.package(loss)
    assert all(torch.isfinite(each).all() for each in gradients(objective.loss, problem.leaves))
    return objective.loss.item(), {name: part.item() for name, part in objective.parts.items()}


@pytest.mark.parametrize(("answers", "likelier"), [(OWN, True), (COMPANIONS, False)])
def test_dpo_of_thousands_of_nats(answers, likelier):
    """Linear in the margin where it is wrong, 0 where it is right."""
    loss, parts = far_away(DPO(1.0), answers, likelier)
    assert loss == pytest.approx(-parts["margin"], rel=1e-5)
    assert loss > 1000
    loss, parts = far_away(DPO(1.0), answers, not likelier)
    assert loss == pytest.approx(0, abs=1e-6)
    assert parts["margin"] > 1000


def test_kto_of_thousands_of_nats():
    """Between 0 and 1, from both ends; the baseline is never below 0."""
    loss, parts = far_away(KTO(1.0), OWN, True)
    assert (loss, parts["log_ratio"] > 1000) == (1, True)
    loss, parts = far_away(KTO(1.0), OWN, False)
    assert (loss, parts["log_ratio"] < -1000) == (0, True)
    loss, parts = far_away(KTO(1.0), COMPANIONS, True)
    assert (loss, parts["baseline"] > 1000) == (0, True)
    loss, parts = far_away(KTO(1.0), COMPANIONS, False)
    assert (0 < loss < 1, parts["baseline"]) == (True, 0)


def test_npo_and_sim_npo_of_thousands_of_nats():
    """Linear in a large log-ratio, 0 at a small one; SimNPO has no reference."""
    loss, parts = far_away(NPO(1.0), slice(None), True)
    assert loss == pytest.approx(2 * parts["log_ratio"], rel=1e-5)
    assert loss > 1000
    assert far_away(NPO(1.0), slice(None), False)[0] == pytest.approx(0, abs=1e-6)
    loss, parts = far_away(SimNPO(4.5, 3.0), slice(None), False)
    assert loss == pytest.approx(0, abs=1e-6)
    assert parts["log_probability"] < -1000
