"""Training without noise: equal passes whatever the seed, gradients as before, activations still recomputed."""

import pytest
import torch
from tiny_models import tiny_model

from dipo_pl.models.eval_mode import noise_settings, without_noise

IDS = torch.tensor([[5, 9, 40, 33, 7, 21]])
# Dropout of every place and name, of whole layers, and of routers.
NOISY = {
    "gpt2": {},
    "opt": {"dropout": 0.3, "attention_dropout": 0.3},
    "phimoe": {"router_jitter_noise": 0.1, "input_jitter_noise": 0.1},
    "llama": {"attention_dropout": 0.5},
    "bart": {"activation_dropout": 0.3, "decoder_layerdrop": 0.5},
}


def trained(kind, checkpointing):
    model = tiny_model(kind, spread=0.1, **NOISY[kind])
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def passes(model, count=3):
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        found.append(model(input_ids=IDS, use_cache=False).logits)
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", NOISY)
def test_passes_are_those_of_eval_mode(kind, checkpointing):
    model = trained(kind, checkpointing)
    assert noise_settings(model)
    assert any(not torch.equal(each, passes(model)[0]) for each in passes(model)[1:])
    without_noise(model)
    first, *others = passes(model)
    assert all(torch.equal(each, first) for each in others)
    assert torch.equal(first, model.eval()(input_ids=IDS, use_cache=False).logits)


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_activations_are_still_recomputed(kind):
    model = trained(kind, checkpointing=True)
    without_noise(model)
    calls = []
    block = next(each for name, each in model.named_modules() if name.endswith(("h.0.mlp", "layers.0.fc1")))
    block.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert len(calls) == 2


def test_a_model_without_noise_stays_in_train_mode():
    model = tiny_model("llama").train()
    assert not noise_settings(model)
    without_noise(model)
    assert all(each.training for each in model.modules())


def test_settings_are_named():
    assert noise_settings(tiny_model("gpt2")) == {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
