"""Selection of positions before a loss: the same whatever the budget and the precision, by whole sequences."""

import pytest
import torch
from loss_definitions import DEFINITIONS, rarest
from loss_problems import draw, gradients

from dipo_pl.losses import SHRED
from dipo_pl.losses.base import UNSELECTED
from dipo_pl.losses.heads import Heads
from dipo_pl.losses.selection import with_selection

LENGTHS = [5, 0, 3, 1, 6]


def marked(problem, loss, budget=1000):
    section = problem.section(loss)
    return with_selection(section, Heads(*problem.heads), budget).targets.tolist()


@pytest.mark.parametrize("budget", [1, 2, 7, 1000])
@pytest.mark.parametrize("head", [{}, {"scale": 0.25}, {"softcap": 2.0}], ids=["plain", "scale", "softcap"])
def test_whole_sequences_are_ranked(head, budget):
    """More and fewer selected positions than the budget, in sequences that it cuts."""
    problem = draw(LENGTHS, 31, **head)
    z_ref, expected, start = problem.to(torch.float64).logits(reference=True), [], 0
    for length in LENGTHS:
        own = slice(start, start + length)
        expected += rarest(0.4)(z_ref[own], problem.targets[own].tolist()) if length else []
        start += length
    assert marked(problem.to(torch.float32), SHRED(0.4), budget) == expected
    assert UNSELECTED in expected


def test_skipped_positions_are_not_ranked():
    problem = draw([4, 1, 2], 31).to(torch.float32)
    rest = problem.to(torch.float32)
    rest.targets[[0, 4, 5]] = 0
    found = marked(problem, SHRED(1.0, skip=1))
    assert found == [-1, *problem.targets[1:4].tolist(), -1, -1, problem.targets[6].item()]
    assert marked(rest, SHRED(1.0, skip=1)) == found


def test_other_losses_are_left_alone():
    problem = draw(LENGTHS, 31).to(torch.float32)
    section = problem.section(DEFINITIONS["NPO"].loss)
    assert with_selection(section, Heads(*problem.heads), 4) is section
    assert section.loss.select(torch.zeros(3), [3]).tolist() == [True] * 3


def test_half_precision_selects_the_same():
    """One answer of nearly equal probabilities, which bfloat16 cannot tell apart."""
    problem = draw([40], 31, spread=0.01).to(torch.float32)
    alone = marked(problem, SHRED(0.5))
    with torch.autocast("cpu", torch.bfloat16):
        assert marked(problem, SHRED(0.5)) == alone
    assert sum(each != UNSELECTED for each in alone) == 20


def test_nothing_flows_into_the_reference():
    problem = draw([4, 2], 31).to(torch.float32)
    problem.reference_states.requires_grad_()
    objective = problem.package(SHRED(0.5))
    gradients(objective.loss, problem.leaves)
    assert problem.reference_states.grad is None
    assert torch.autograd.grad(
        problem.package(SHRED()).loss, problem.reference_states, allow_unused=True
    ) == (None,)


def test_no_rows():
    problem = draw([0, 0], 31).to(torch.float32)
    assert problem.package(SHRED()).loss.item() == 0
