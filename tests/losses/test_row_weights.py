"""Weights of rows that fall to 0 at the loss of unseen text: against float64, by hand, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from engine_losses import OverTokens, definition_of
from loss_definitions import DEFINITIONS, log_p
from loss_problems import close, draw, draw_for, gradients
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dipo_pl.errors import InputError
from dipo_pl.losses import NPO, RMU, SHRED, CrossEntropy, GradientAscent, RMURetain
from dipo_pl.losses.engine import joint_objective
from dipo_pl.models.from_config import FromConfig
from dipo_pl.modules.unlearning import Unlearning


class PairsOverTokens(OverTokens):
    companions = ("alternate",)


# Of the gap, of it with a margin a token, of log-probabilities, over tokens, without the first token, with companions.
NAMES = (
    "DiPO, fixed tokens", "DiPO, margin a token", "NPO", "GradientAscent", "CEU without the first", "DPO",
)  # fmt: skip
WEIGHTED = {name: DEFINITIONS[name] for name in NAMES} | {
    "pairs over tokens": definition_of(PairsOverTokens())
}
LENGTHS = [5, 1, 0, 3, 6, 2]


def row_weight(problem, row, skip, until):
    """A Python number, so that no gradient goes through it."""
    start = sum(problem.lengths[:row])
    z, places = problem.logits().detach(), range(start + skip, start + problem.lengths[row])
    nll = -sum(float(log_p(z[t], z[t], int(problem.targets[t]))) for t in places) / len(places)
    return max(0.0, 1 - nll / until)


def expected(problem, definition, until):
    """The mean over rows, or tokens, of what each row gives alone, times its weight; and the mean weight."""
    count, values, weights, shares = len(problem.lengths) // definition.members, [], [], []
    for row in range(count):
        members = [row + count * each for each in range(definition.members)]
        if min(problem.lengths[each] for each in members) <= definition.skip:
            continue
        value, _ = problem.of_sequences(members).definition(definition)
        weights.append(row_weight(problem, row, definition.skip, until))
        values.append(value)
        tokens = sum(problem.lengths[each] - definition.skip for each in members)
        shares.append(1 if definition.f is not None else tokens)
    total = sum(w * n * value for w, n, value in zip(weights, shares, values, strict=True)) / sum(shares)
    return total, sum(weights) / len(weights)


@pytest.mark.parametrize("head", [{}, {"scale": 1.7, "softcap": 3.0}], ids=["plain", "softcap"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_value_and_gradient(name, head):
    problem, definition = draw_for(WEIGHTED[name], LENGTHS, 23, **head), WEIGHTED[name]
    ours, theirs = problem.to(torch.float32), problem.to(torch.float64)
    # Some rows have nothing left, others have.
    until = 5.0
    total, remaining = expected(theirs, definition, until)
    assert 0 < remaining < 1
    by = gradients(0.7 * total, theirs.leaves)
    for budget in (1, 4, 1000):
        section = replace(ours.section(definition.loss, weight=0.7), until=until)
        joint = joint_objective({"forget": section}, *ours.heads, budget)
        close(joint.loss, 0.7 * total)
        close(joint.sections["forget"].loss, total)
        close(joint.sections["forget"].parts["remaining"], torch.tensor(remaining))
        for one, other in zip(gradients(joint.loss, ours.leaves), by, strict=True):
            close(one, other)


@pytest.mark.parametrize(("until", "weight"), [
    # p(y) = 3/4 at each of two tokens, so that the loss is ln 4/3 a token.
    (2 * math.log(4 / 3), 0.5), (math.log(4 / 3), 0.0), (math.log(4 / 3) / 2, 0.0),
])  # fmt: skip
def test_by_hand(until, weight):
    """The gradient of ascent on the mean of log p is onehot - p over the number of tokens."""
    problem = draw([2], 2, bias=False).to(torch.float32)
    problem.weight = torch.eye(2, 5)
    problem.states = torch.tensor([[math.log(3), 0, 0, 0, 0], [0, math.log(3), 0, 0, 0]], requires_grad=True)
    problem.targets = torch.tensor([0, 1])
    section = replace(problem.section(GradientAscent()), until=until)
    joint = joint_objective({"": section}, *problem.heads)
    assert joint.loss.item() == pytest.approx(-weight * math.log(4 / 3), abs=1e-7)
    (by_states,) = torch.autograd.grad(joint.loss, problem.states)
    each = weight / 2 / 4
    assert by_states.flatten().tolist() == pytest.approx(
        [each, -each, 0, 0, 0, -each, each, 0, 0, 0], abs=1e-7
    )


def test_without_it_every_row_has_its_whole_weight():
    problem = draw([5, 3]).to(torch.float32)
    sections = {
        "far": replace(problem.section(NPO(0.3)), until=1e9),
        "none": problem.section(NPO(0.3)),
    }
    found = joint_objective(sections, *problem.heads).sections
    assert "remaining" not in found["none"].parts
    assert found["far"].loss.item() == pytest.approx(found["none"].loss.item(), rel=1e-6)


def test_nothing_remains_of_a_batch_without_rows():
    problem = draw([0, 0]).to(torch.float32)
    joint = joint_objective({"": replace(problem.section(NPO(0.3)), until=1.0)}, *problem.heads)
    assert joint.loss.item() == 0
    assert joint.sections[""].parts == {}


@pytest.mark.parametrize("name", ["RMU", "SHRED"])
def test_a_layer_and_selected_positions_have_no_weights(name):
    problem = draw_for(DEFINITIONS[name], [4, 2], 11).to(torch.float32)
    section = replace(problem.section(DEFINITIONS[name].loss), until=1.0)
    with pytest.raises(ValueError, match=f"{name} has no weights of rows"):
        joint_objective({"": section}, *problem.heads)


@pytest.mark.parametrize(("forget", "retain"), [(RMU(), RMURetain()), (SHRED(), CrossEntropy())])
def test_losses_without_weights_of_rows_are_refused(forget, retain):
    name = type(forget).__name__
    with pytest.raises(
        InputError, match=rf"^model.forget_until is 7 and model.forget_loss is {name}, which acts on a"
    ):
        Unlearning(FromConfig({"model_type": "llama"}), forget, retain, forget_until=7.0)


def test_only_forget_rows_have_weights(cli):
    """Answers of 512 equally probable tokens have 6.2 nats a token: nothing is left to forget."""
    ended = cli(
        "fit", "--config", "smoke.yaml", "--samples.rows", "0", "--forget_quality.generate_every", "0",
        "--data.evaluation_rows", "2", "--model.forget_until", "5",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    events = EventAccumulator("runs/smoke").Reload()
    names = ("forget_loss", "forget_remaining", "loss", "retain_loss")
    found = {name: [each.value for each in events.Scalars(f"train/{name}")] for name in names}
    assert set(found["forget_loss"]) == set(found["forget_remaining"]) == {0.0}
    assert found["loss"] == found["retain_loss"]
    assert min(found["loss"]) > 0.5
    assert "train/retain_remaining" not in events.Tags()["scalars"]
