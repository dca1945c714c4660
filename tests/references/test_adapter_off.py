"""The policy without its adapters is bitwise the model that it was made of, and is left as it was."""

import copy
import math

import pytest
import torch
from tiny_models import ARCHITECTURES, adapted_model, adapters, tiny_model

from dipo_pl.batch import Encoded, collate
from dipo_pl.errors import InputError
from dipo_pl.losses import NPO
from dipo_pl.losses.engine import sequence_objective
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import answer_states
from dipo_pl.references.adapter_off import AdapterOff
from dipo_pl.references.frozen_copy import FrozenCopy

BATCH = collate(
    {"forget": [Encoded((1, 5, 9, 40, 33, 2), 3), Encoded((1, 7, 8, 2), 2)], "retain": [Encoded((1, 3, 4), 1)]},
    [0, 1, 0],
)  # fmt: skip


def attached(model, kind=AdapterOff):
    reference = kind()
    reference.attach(model, None)
    return reference


def checkpointing(model, wanted):
    if wanted:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recomputed", [False, True])
def test_states_are_bitwise_those_of_the_bare_model(kind, dtype, recomputed):
    model = checkpointing(adapted_model(kind, dtype, dropout=0.5), recomputed)
    states = attached(model).states(BATCH, (None, 0))
    with torch.no_grad():
        expected = answer_states(tiny_model(kind, spread=0.1, dtype=dtype), BATCH, (None, 0))
        with_adapters = answer_states(model, BATCH, (None, 0))
    for layer in (None, 0):
        assert torch.equal(states[layer], expected[layer])
        assert not states[layer].requires_grad
        assert not torch.equal(with_adapters[layer], expected[layer])


def test_the_head_is_the_policys_own():
    model = adapted_model("phi")
    head = attached(model).head
    assert head.weight is model.lm_head.weight
    assert head.bias is model.lm_head.bias


@pytest.mark.parametrize("fails", [False, True])
def test_the_policy_is_left_as_it_was(fails):
    model = adapted_model("gpt2")
    reference = attached(model)
    # Some parts in eval mode, some adapters not trained.
    model.get_submodule("transformer.h.1").eval()
    model.get_submodule("transformer.h.0.attn.c_attn").lora_A["default"].weight.requires_grad_(False)
    modules = dict(model.named_modules())
    modes = {name: each.training for name, each in modules.items()}
    trained = {name: each.requires_grad for name, each in model.named_parameters()}
    seen = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, inputs: seen.append((module.training, torch.is_grad_enabled()))
    )
    batch = copy.copy(BATCH)
    if fails:
        batch.input_ids = torch.full_like(BATCH.input_ids, 61)
        with pytest.raises(IndexError):
            reference.states(batch)
    else:
        reference.states(batch)
    assert seen == [(False, False)]
    assert dict(model.named_modules()) == modules
    assert list(dict(model.named_modules())) == list(modules)
    assert {name: each.training for name, each in model.named_modules()} == modes
    assert {name: each.requires_grad for name, each in model.named_parameters()} == trained


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi"])
@pytest.mark.parametrize("recomputed", [False, True])
def test_a_step_has_the_same_gradients_as_with_a_frozen_copy(kind, recomputed):
    losses, gradients = [], []
    for reference_kind in (FrozenCopy, AdapterOff):
        model = adapted_model(kind, trained=False)
        reference = attached(model, reference_kind)
        with torch.no_grad():
            for name, each in adapters(model).items():
                if "lora_B" in name:
                    each.fill_(0.02)
        checkpointing(model, recomputed)
        torch.manual_seed(3)  # of dropout
        objective = sequence_objective(
            answer_states(model, BATCH)[None], BATCH.targets, BATCH.lengths, OutputHead.of(model), NPO(beta=0.1),
            reference.states(BATCH)[None], reference.head,
        )  # fmt: skip
        objective.loss.backward()
        losses.append(objective.loss.item())
        gradients.append({name: each.grad for name, each in adapters(model).items()})
        assert all(each.grad is None for name, each in model.named_parameters() if "lora_" not in name)
    assert losses[0] == losses[1]
    assert losses[0] != pytest.approx(2 / 0.1 * math.log(2), abs=1e-4)
    for name, each in gradients[0].items():
        assert each.any()
        assert torch.equal(each, gradients[1][name])


def test_it_needs_adapters_and_holds_nothing_of_its_own():
    with pytest.raises(InputError, match=r"the policy has no adapter: set model\.policy\.adapter to LoRA"):
        attached(tiny_model())
    with pytest.raises(RuntimeError, match="before attach"):
        AdapterOff().states(BATCH)
    attached(adapted_model()).apply(lambda tensor: pytest.fail("there is nothing to move"))
