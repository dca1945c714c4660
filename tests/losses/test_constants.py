"""Rows whose gradient is zero: they pass the decoder without one, and change nothing."""

import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from loss_problems import close, gradients
from tiny_models import tiny_model

from dipo_pl.batch import Encoded, collate
from dipo_pl.losses import KTO, CrossEntropy
from dipo_pl.losses.base import Section
from dipo_pl.losses.engine import joint_objective
from dipo_pl.models.from_config import FromConfig
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import answer_states
from dipo_pl.modules.unlearning import Unlearning
from dipo_pl.references.base import ReferenceContext

# Prompt and answer of each row; those with the next row's answer have other lengths.
SHAPES = {
    "forget": [(3, 5), (7, 2), (1, 9)],
    "mismatched": [(3, 2), (7, 9), (1, 5)],
    "retain": [(4, 4), (2, 7)],
}


def batch():
    generator = torch.Generator().manual_seed(0)
    sequences = {
        kind: [
            Encoded(tuple(torch.randint(3, 61, (prompt + answer,), generator=generator).tolist()), prompt)
            for prompt, answer in shapes
        ]
        for kind, shapes in SHAPES.items()
    }
    return collate(sequences, range(8), {"forget": ("forget", "mismatched"), "retain": ("retain",)})


@pytest.fixture
def module():
    """KTO with a reference that the policy has moved away from."""
    module = Unlearning(FromConfig({"model_type": "llama"}), KTO(0.3), CrossEntropy(), token_budget=6)
    module.model = tiny_model("llama", initializer_range=0.5)
    context = ReferenceContext({None}, {}, {}, Path(), torch.device("cpu"), nullcontext, 0, 1, lambda: None)
    module.reference.attach(module.model, context)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in module.model.parameters():
            each.add_(torch.randn(each.shape, generator=generator), alpha=0.02)
        # A flatter distribution finds random answers more likely than the reference does: the baseline is above 0.
        module.model.get_output_embeddings().weight.mul_(0.3)
    return module


def loss_of(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a trainer nothing is logged
        return module.training_step(batch(), 0)


def test_they_pass_the_decoder_without_a_gradient(module):
    seen = []
    module.model.get_decoder().register_forward_pre_hook(
        lambda decoder, inputs, options: seen.append((len(options["input_ids"]), torch.is_grad_enabled())),
        with_kwargs=True,
    )
    loss_of(module).backward()
    # The mismatched ones, then forget and retain rows. The reference is another model.
    assert seen == [(3, False), (5, True)]


def test_loss_and_gradient_are_those_of_one_pass_with_gradients(module):
    parameters = list(module.model.parameters())
    ours = loss_of(module)
    found = gradients(ours, parameters)
    given = batch()
    states = given.by_section(answer_states(module.model, given)[None])
    reference, targets = (
        given.by_section(each) for each in (module.reference.states(given)[None], given.targets)
    )
    sections = {
        name: Section(loss, states[name], targets[name], given.sections[name].lengths, reference[name])
        for name, loss in module.losses.items()
    }
    theirs = joint_objective(sections, OutputHead.of(module.model), module.reference.head, 6)
    close(ours, theirs.loss, 1e-6)
    assert float(theirs.sections["forget"].parts["baseline"]) > 0
    for one, other in zip(found, gradients(theirs.loss, parameters), strict=True):
        assert other.any()
        close(one, other)
