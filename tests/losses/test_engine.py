"""The engine with losses that only these tests have: rows with companions, coupled rows, skipped tokens, layers."""

import itertools
from dataclasses import replace

import pytest
import torch
from engine_losses import OWN, Pairs, SumOfLogits, skipping
from loss_definitions import DEFINITIONS
from loss_problems import close, compare, draw, draw_for, gradients
from torch.utils._python_dispatch import TorchDispatchMode

from dipo_pl.losses import KTO, NPO, RMU, CrossEntropy, DiPO, GapLoss, Loss
from dipo_pl.losses.base import Section
from dipo_pl.losses.engine import joint_objective, sequence_objective
from dipo_pl.models.head import OutputHead

EVERY = DEFINITIONS | OWN
# Multiples of 6, so that pairs and triples take them too.
LENGTHS = {
    "all": [5, 3, 4, 2, 6, 3],
    "empty": [4, 0, 3, 5, 0, 6, 4, 2, 0, 7, 3, 1],
    "short": [1, 4, 2, 6, 3, 1, 2, 7, 3, 5, 2, 4],
    "long": [3, 9, 2, 4, 8, 5],
}


@pytest.mark.parametrize("head", [{}, {"scale": 0.7, "softcap": 2.0}], ids=["plain", "softcap"])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", OWN)
def test_a_loss_of_ones_own(name, lengths, head):
    """Budgets of one position, less than a row, one row or two, and everything."""
    problem = draw_for(OWN[name], LENGTHS[lengths], 19, spread=0.8, **head)
    compare(problem, OWN[name], (1, 3, 8, 16, 1000))


@pytest.mark.parametrize("budget", [1, 5, 1000])
def test_sections_of_every_kind_add_up(budget):
    """Each weighted, with its own counts, on one head and one backward pass."""
    chosen = {"pairs": 0.7, "coupled": 2.0, "skip over tokens": 0.25, "skip on a layer": 1.5}
    problems = {
        name: draw(LENGTHS["empty"], 19, seed=seed, reference_width=5) for seed, name in enumerate(chosen)
    }
    ours, theirs = (
        {name: each.to(dtype) for name, each in problems.items()} for dtype in (torch.float32, torch.float64)
    )
    for some in (ours, theirs):
        for each in some.values():
            for name in ("weight", "bias", "reference_weight", "reference_bias"):
                setattr(each, name, getattr(some["pairs"], name))
    sections = {name: ours[name].section(OWN[name].loss, weight) for name, weight in chosen.items()}
    joint = joint_objective(sections, *ours["pairs"].heads, budget)
    values = {name: theirs[name].definition(OWN[name])[0] for name in chosen}
    for name, value in values.items():
        close(joint.sections[name].loss, value)
    total = sum(chosen[name] * value for name, value in values.items())
    close(joint.loss, total)
    leaves = [
        [some["pairs"].weight, some["pairs"].bias, *(each.states for each in some.values())]
        for some in (ours, theirs)
    ]
    for one, other in zip(gradients(joint.loss, leaves[0]), gradients(total, leaves[1]), strict=True):
        close(one, other)


@pytest.mark.parametrize("name", EVERY)
def test_no_row_left_is_exactly_zero(name):
    """No sequences at all; and rows that each lack one sequence, or are skipped whole."""
    loss = EVERY[name].loss
    one_short = [loss.skip + 3, 0, 0, 0, 0, 0][: 6 if loss.companions else 0]
    for lengths in ([], [0] * 6, [loss.skip] * 6, one_short):
        problem = draw_for(EVERY[name], lengths).to(torch.float32)
        for budget in (4, 1000):
            objective = problem.package(loss, budget)
            assert objective.loss.item() == 0
            assert not any(gradient.any() for gradient in gradients(objective.loss, problem.leaves))


def test_what_is_left_out_gets_no_gradient():
    problem = draw([3, 2, 4, 0, 5, 1]).to(torch.float32)
    by_states = gradients(problem.package(skipping(Pairs(), 1)).loss, problem.leaves)[0]
    # Rows: 3 with nothing, 2 with 5, 4 with 1 token, of which none is left.
    moved = (by_states != 0).any(dim=1).tolist()
    assert moved == [*[False] * 3, False, True, *[False] * 4, False, *[True] * 4, False]


# What a loss is given by its base class.


def test_defaults_of_the_base_class():
    loss, sums = SumOfLogits(), torch.tensor([1.0, -2.0])
    assert (loss.uses_reference, loss.mean_over) == (False, "sequences")
    assert torch.equal(loss.sequence_loss(sums, torch.tensor([3, 1])), sums)
    assert loss.sequence_parts(sums, torch.tensor([3, 1])) == {}
    logits = torch.randn(2, 4)
    values, gradient, parts = loss.terms_and_gradient(logits, torch.tensor([0, 1]), None)
    torch.testing.assert_close(values, logits.sum(-1))
    assert parts == {}
    assert not values.requires_grad
    assert not logits.requires_grad
    # Autograd's gradient of a sum is one number seen V times, and the engine writes into it.
    gradient.mul_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.equal(gradient[0], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    with pytest.raises(TypeError, match="terms"):
        Loss()


# Gradients.


def test_a_loss_on_a_layer_leaves_the_head_alone():
    """No gradient at all, where one of zeros would let weight decay move the head."""
    problem = draw([6, 2, 5], reference_width=5).to(torch.float32)
    problem.package(RMU(layer=0)).loss.backward()
    assert problem.weight.grad is None
    assert problem.states.grad.abs().max() > 0


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_gradients_that_are_not_wanted_change_no_other(wanted):
    """A frozen head or decoder gets none, and the others are the same."""
    for budget in (3, 512):
        problem = draw([6, 2, 5], softcap=3.0).to(torch.float32)
        every = gradients(problem.package(NPO(), budget).loss, problem.leaves)
        for index, leaf in enumerate(problem.leaves):
            leaf.requires_grad_(index in wanted)
        problem.package(NPO(), budget).loss.backward()
        for index, leaf in enumerate(problem.leaves):
            if index in wanted:
                close(leaf.grad, every[index], 1e-6)
            else:
                assert leaf.grad is None


@pytest.mark.parametrize("head", [{}, {"scale": 0.7}, {"scale": 0.7, "softcap": 2.0}], ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["own head", "shared head"])
@pytest.mark.parametrize("name", [name for name in EVERY if EVERY[name].loss.layer is None])
def test_a_frozen_head(name, shared, head):
    """In one pass whatever the budget; a loss of the gap without the reference's logits."""
    problem = draw_for(EVERY[name], LENGTHS["empty"], 19, spread=0.8, reference_width=5, **head)
    compare(replace(problem, frozen=True, shared=shared), EVERY[name], (1, 5, 1000))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["gap, policy", "DiPO, fixed tokens"])
def test_the_gap_of_a_shared_head_in_half_precision(name, dtype):
    """Hidden states are rounded as the head takes them, and the gap is their difference in float32."""
    problem = draw([5, 3, 6, 2], 37, spread=0.5, reference_width=5)
    compare(replace(problem, frozen=True, shared=True), EVERY[name], (3, 1000), dtype=dtype)


@pytest.mark.parametrize("name", ["terms", "terms_and_gradient"])
def test_a_loss_of_the_gap_has_no_terms_of_its_own(name):
    """They would be used with a soft cap alone."""
    with pytest.raises(
        TypeError, match=f"^Own overrides {name}, and the terms of a GapLoss follow from gap_weights"
    ):
        type("Own", (DiPO,), {name: lambda *given: None})


def test_constants_get_no_gradient():
    problem = draw([3, 2, 4, 2]).to(torch.float32)
    by_states = gradients(problem.package(KTO()).loss, problem.leaves)[0]
    assert (by_states != 0).any(dim=1).tolist() == [True] * 5 + [False] * 6


def test_a_frozen_head_costs_no_memory():
    """Nothing of its size is kept for the backward pass."""
    problem = draw([6, 2, 5]).to(torch.float32)
    weight, bias, states = problem.package(NPO()).loss.grad_fn.gradients
    assert [each.shape for each in (states, weight, bias)] == [leaf.shape for leaf in problem.leaves]
    problem.weight.requires_grad_(False)
    problem.bias.requires_grad_(False)
    assert problem.package(NPO()).loss.grad_fn.gradients[:2] == [None, None]


def test_a_second_backward_is_refused():
    """The gradients were scaled in place and handed over: they would come out scaled twice."""
    problem = draw([6, 2, 5]).to(torch.float32)
    value = problem.package(NPO()).loss
    torch.autograd.grad(value, problem.leaves, retain_graph=True)
    with pytest.raises(RuntimeError, match=r"backward\(\) a second time"):
        torch.autograd.grad(value, problem.leaves)


def test_second_derivatives_are_refused():
    """Only the first are there: a gradient penalty on the loss squared, say, would silently lose a part."""
    problem = draw([6, 2, 5]).to(torch.float32)
    value = problem.package(CrossEntropy()).loss
    (gradient,) = torch.autograd.grad(value**2, problem.states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.pow(2).sum().backward()


# Precision.


def test_a_head_that_both_models_share_is_cast_once(monkeypatch):
    problem, casts = draw([6, 2], reference_width=5).to(torch.float32), []
    cast = OutputHead.cast
    monkeypatch.setattr(OutputHead, "cast", lambda head, dtype: casts.append(dtype) or cast(head, dtype))
    shared = OutputHead(problem.weight, problem.bias)
    for reference, count in ((shared, 1), (problem.heads[1], 2)):
        casts.clear()
        with torch.autocast("cpu", torch.bfloat16):
            joint_objective({"": problem.section(DiPO())}, shared, reference)
        assert casts == [torch.bfloat16] * count


class Linear(Loss):
    """Its derivative by the logits is the same whatever their rounding."""

    def __init__(self, factor):
        self.factor = factor

    def terms(self, logits, targets, reference_logits):
        return self.factor * (logits * torch.linspace(-1, 1, logits.shape[-1])).sum(-1)


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e7])
@pytest.mark.parametrize("weight", [1e-5, 1.0, 1e5])
def test_float16_loses_no_small_derivative_and_overflows_at_no_large_one(factor, weight):
    """Float16 ends at 6e-8 and 65,504, and a loss scaler multiplies only what has been summed up."""
    problem = draw([40, 30], 211, bias=False).to(torch.float16)
    found = []
    for each in (problem, problem.to(torch.float32)):
        section = Section(Linear(factor), each.states, each.targets, each.lengths, weight=weight)
        loss = joint_objective({"": section}, each.heads[0]).loss / (factor * weight)
        found.append(gradients(loss, each.leaves))
    for ours, theirs in zip(*found, strict=True):
        close(ours, theirs, 4e-3)


def test_many_groups_add_up_in_float32():
    """600 equal contributions of bfloat16, one by one: a bfloat16 sum would stop growing at 256 of them."""
    one = draw([1]).to(torch.bfloat16)
    states, targets = one.states.detach().repeat(600, 1), one.targets.repeat(600)
    single, whole = (
        gradients(
            sequence_objective(
                states, targets, [1] * 600, one.heads[0], CrossEntropy(), token_budget=budget
            ).loss,
            one.leaves[1:],
        )
        for budget in (1, 600)
    )
    for ours, theirs in zip(single, whole, strict=True):
        close(ours, theirs, 1e-2)


def test_means_are_divided_in_float32():
    """A bfloat16 factor of 1 / 3 would make 1.002 of three of them."""
    problem = draw([2, 1, 3]).to(torch.bfloat16)
    by_bias = gradients(problem.package(SumOfLogits()).loss, problem.leaves)[2]
    assert torch.equal(by_bias, torch.full_like(by_bias, 2))


# Memory and time.


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, torch.Tensor):
                self.largest = max(self.largest, each.numel())
        return result


@pytest.mark.parametrize("lengths", [[5] * 12, [3, 7, 1, 24, 12, 13]], ids=str)
@pytest.mark.parametrize("name", [name for name in EVERY if EVERY[name].loss.layer is None])
def test_no_tensor_outgrows_the_budget(name, lengths):
    """60 positions, 211 tokens, few dimensions: 8 x 211 is more than any tensor but logits needs."""
    problem = draw(lengths, 211).to(torch.float32)
    with LargestTensor() as recorder:
        problem.package(EVERY[name].loss, 8).loss.backward()
    assert recorder.largest <= 8 * 211
    # The recorder does see it where the budget allows more.
    with LargestTensor() as recorder:
        problem.package(EVERY[name].loss, 60).loss.backward()
    assert recorder.largest > 8 * 211


@pytest.mark.parametrize("frozen", [False, True], ids=["trained head", "frozen head"])
@pytest.mark.parametrize("lengths", [[5] * 12, [3, 7, 1, 40, 2, 7]], ids=str)
@pytest.mark.parametrize("name", [name for name in EVERY if EVERY[name].loss.layer is None])
def test_logits_are_computed_as_often_as_needed_in_the_same_memory(monkeypatch, name, lengths, frozen):
    """Twice only for rows larger than the budget and coupled ones, of a trained head; a token mean needs no row's sum."""
    definition, places, sizes = EVERY[name], set(), []
    logits_of = OutputHead.logits

    def spy(head, states, out):
        logits = logits_of(head, states, out)
        places.add(logits.data_ptr())
        sizes.append(len(logits))
        return logits

    monkeypatch.setattr(OutputHead, "logits", spy)
    loss, members = definition.loss, definition.members
    replace(draw(lengths), frozen=frozen).to(torch.float32).package(loss, 8)
    count = len(lengths) // members
    left = [[max(0, lengths[row + count * m] - loss.skip) for m in range(members)] for row in range(count)]
    rows = [row for row in left if all(row)]
    constant = [1 + loss.companions.index(kind) for kind in loss.constant_companions]
    once = sum(row[m] for row in rows for m in constant)
    rows = [sum(row[m] for m in range(members) if m not in constant) for row in rows]
    if loss.mean_over == "tokens" or frozen:
        passes = sum(rows)
    elif loss.couples_sequences:
        passes = sum(rows) * (2 if sum(rows) > 8 else 1)
    else:
        passes = sum(row * (2 if row > 8 else 1) for row in rows)
    # A loss of the gap looks at one model.
    heads = 2 if loss.uses_reference and not isinstance(loss, GapLoss) else 1
    # One more of the reference's for the choice of positions.
    assert sum(sizes) == (passes + once) * heads + (sum(lengths) if loss.selects else 0)
    assert max(sizes, default=0) <= 8
    # One group's are where the last one's were; each head's memory may have grown as groups did.
    assert len(places) <= heads * len(set(itertools.accumulate(sizes, max)))


# Arguments.


def test_shapes_that_disagree_are_refused():
    problem = draw([6, 2, 5]).to(torch.float32)

    def evaluate(loss, **changes):
        given = vars(problem.section(loss)) | changes
        return joint_objective({"": Section(**given)}, *problem.heads)

    for changes, message in (
        ({"lengths": [6, 1, 5]}, "13 states, 13 targets and 12 positions in `lengths`"),
        ({"targets": problem.targets[1:]}, "13 states, 12 targets and 13 positions"),
        ({"states": problem.states[1:]}, "12 states, 13 targets"),
        ({"reference_states": problem.reference_states[1:]}, "13 states and 12 reference states"),
        (
            {"reference_states": torch.cat([problem.reference_states] * 2)},
            "13 states and 26 reference states",
        ),
        ({"reference_states": None}, "NPO needs reference_states and reference_head"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(NPO(), **changes)
    with pytest.raises(ValueError, match="NPO needs reference_states and reference_head"):
        joint_objective({"": problem.section(NPO())}, problem.heads[0])
    evaluate(CrossEntropy(), reference_states=None)


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_below_1_is_refused(budget):
    with pytest.raises(ValueError, match=rf"^token_budget must be at least 1 \(got {budget}\)$"):
        draw([2]).to(torch.float32).package(CrossEntropy(), budget)


@pytest.mark.parametrize(("name", "members"), [("pairs", 2), ("triples", 3), ("DPO", 2), ("KTO", 2)])
def test_companions_that_are_missing_are_refused(name, members):
    loss = EVERY[name].loss
    with pytest.raises(
        ValueError, match=rf"^{type(loss).__name__} needs {members} sequences a row \(got 7\)$"
    ):
        draw([1, 2, 3, 1, 2, 3, 1]).to(torch.float32).package(loss, 4)
