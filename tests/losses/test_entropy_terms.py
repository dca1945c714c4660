"""Entropy beside other losses in the engine, and the weights of a module: against float64, and what is refused."""

from dataclasses import replace

import pytest
import torch
from loss_definitions import DEFINITIONS, entropy
from loss_problems import close, draw_for, gradients

from dipo_pl.errors import InputError
from dipo_pl.losses import NPO, RMU, CrossEntropy, RMURetain
from dipo_pl.losses.engine import joint_objective
from dipo_pl.models.from_config import FromConfig
from dipo_pl.modules.unlearning import Unlearning

# One sequence mean with a function of the sum, one token mean, one that leaves the first token out, one with companions.
BESIDE = ("NPO", "WGA", "CEU without the first", "DPO", "SHRED")
LENGTHS = [5, 1, 0, 3, 6, 2]


def expected(problem, name, factor):
    """Mean over rows of the mean entropy of a row's own answer, beside the loss."""
    value, _ = problem.definition(DEFINITIONS[name])
    z, start, rows = problem.logits(), 0, []
    for length in problem.lengths[: len(problem.lengths) // DEFINITIONS[name].members]:
        if length:
            rows.append(sum(entropy(z[t], z[t], 0) for t in range(start, start + length)) / length)
        start += length
    mean = sum(rows) / len(rows)
    return 0.7 * value + factor * mean, value, mean


@pytest.mark.parametrize("factor", [1.0, -0.25])
@pytest.mark.parametrize("head", [{}, {"scale": 1.7, "softcap": 3.0}], ids=["plain", "softcap"])
@pytest.mark.parametrize("name", BESIDE)
def test_value_and_gradient(name, head, factor):
    problem = draw_for(DEFINITIONS[name], LENGTHS, 23, **head)
    ours, theirs = problem.to(torch.float32), problem.to(torch.float64)
    total, loss, mean = expected(theirs, name, factor)
    by = gradients(total, theirs.leaves)
    for budget in (1, 4, 1000):
        section = replace(ours.section(DEFINITIONS[name].loss, weight=0.7), entropy=factor)
        joint = joint_objective({"a": section}, *ours.heads, budget)
        close(joint.loss, total)
        close(joint.sections["a"].loss, loss)
        close(joint.sections["a"].parts["entropy"], mean)
        for one, other in zip(gradients(joint.loss, ours.leaves), by, strict=True):
            close(one, other)


def test_each_section_has_its_own():
    problem = draw_for(DEFINITIONS["NPO"], [4, 2], 11).to(torch.float32)
    factors = {"forget": 1.0, "retain": -0.25, "none": 0.0}
    sections = {name: replace(problem.section(NPO(0.3)), entropy=each) for name, each in factors.items()}
    joint = joint_objective(sections, *problem.heads, 3)
    parts = {name: each.parts for name, each in joint.sections.items()}
    assert "entropy" not in parts["none"]
    together = 3 * joint.sections["none"].loss + 0.75 * parts["forget"]["entropy"]
    close(joint.loss, together)
    assert parts["forget"]["entropy"] == parts["retain"]["entropy"]


def test_a_layer_has_no_entropy():
    problem = draw_for(DEFINITIONS["RMU"], [4, 2], 11).to(torch.float32)
    section = replace(problem.section(DEFINITIONS["RMU"].loss), entropy=1.0)
    with pytest.raises(ValueError, match="RMU acts on a layer, which has no entropy"):
        joint_objective({"": section}, *problem.heads)


@pytest.mark.parametrize(("forget", "retain", "weights", "line"), [
    (NPO(), None, {"retain_entropy": -0.25},
     "^model.retain_entropy is -0.25 and model.retain_loss is null: the entropy stands beside a loss of logits on these"),
    (RMU(), RMURetain(), {"forget_entropy": 1.0},
     "^model.forget_entropy is 1 and model.forget_loss is RMU, which acts on a layer's hidden states"),
    (NPO(), CrossEntropy(), {"forget_entropy": float("nan")}, r"^model.forget_entropy must be a finite number \(got nan\)"),
    (NPO(), CrossEntropy(), {"retain_entropy": float("inf")}, r"^model.retain_entropy must be a finite number \(got inf\)"),
])  # fmt: skip
def test_weights_without_a_place_are_refused(forget, retain, weights, line):
    with pytest.raises(InputError, match=line):
        Unlearning(FromConfig({"model_type": "llama"}), forget, retain, **weights)
