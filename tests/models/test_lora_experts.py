"""Adapters on mixtures of experts and recurrent models: chosen by what layers do, and exported as a plain model."""

import re

import pytest
import torch
from peft import PeftModel
from tiny_models import adapters, tiny_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from dipo_pl.errors import InputError
from dipo_pl.models.adapters import check_adapter_export, check_export, merged, save_adapter
from dipo_pl.models.lora import LoRA
from dipo_pl.models.lora_targets import Adaptable

IDS = torch.tensor([[5, 9, 40, 33, 2, 7]])
EXPERTS = ("mixtral", "phimoe", "qwen3_next", "deepseek_v3", "gpt_oss", "jetmoe", "llama4_text")


def adapted(kind, targets):
    model = tiny_model(kind, spread=0.05)
    LoRA(rank=2, targets=targets).apply(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, each in adapters(model).items():
            if "lora_B" in name:
                each.copy_(0.3 * torch.randn(each.shape, generator=generator))
    return model


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("targets", ["all-linear", "all"])
@pytest.mark.parametrize("kind", EXPERTS)
def test_trained_adapters_are_exported_as_a_plain_model(kind, targets, tmp_path):
    model = adapted(kind, targets)
    model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert [name for name, each in adapters(model).items() if each.grad is None] == []
    check_export(model)
    model.save_pretrained(tmp_path, state_dict=merged(model, model.state_dict()))
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-5)
    assert (logits(loaded) - logits(tiny_model(kind, spread=0.05))).abs().max() > 0.01


@pytest.mark.parametrize(("kind", "routers", "experts"), [
    ("mixtral", 0, 4), ("phimoe", 0, 4), ("qwen3_next", 2, 4), ("deepseek_v3", 0, 2), ("gpt_oss", 0, 4), ("jetmoe", 4, 8),
    ("llama4_text", 0, 4), ("llama", 0, 0), ("gpt2", 0, 0),
])  # fmt: skip
def test_routers_and_experts_are_known_by_what_they_do(kind, routers, experts):
    parts = Adaptable.of(tiny_model(kind))
    assert (len(parts.routers), len(parts.experts)) == (routers, experts)
    assert not any(re.search(r"router|shared_expert_gate|lm_head", name) for name in parts.linear)


def test_experts_that_all_tokens_share_are_adapted():
    """peft takes them for the others, by their name."""
    names = {name.partition(".lora_")[0] for name in adapters(adapted("qwen3_next", "all-linear"))}
    assert {f"model.layers.0.mlp.shared_expert.{each}_proj" for each in ("gate", "up", "down")} <= names
    assert not any("mlp.experts" in name for name in names)


def test_a_layer_whose_weights_are_read_past_it_is_left_out():
    parts = Adaptable.of(tiny_model("mamba"))
    assert {name.rpartition(".")[2] for name in parts.linear} == {"in_proj", "x_proj", "out_proj"}


def test_what_is_adapted_is_said_with_what_is_not():
    model = tiny_model("qwen3_next")
    parts = Adaptable.of(model)
    text = parts.summary(model, parts.chosen("all-linear", "Model"))
    assert re.fullmatch(
        r"adapters on 13 layers with 38\.\d% of the weights \(2 down_proj, 2 gate_proj, .*\); left without: experts in 4 "
        r"tensors with 34\.\d% \(--model.policy.adapter.targets all adapts them too\), 2 routers, embeddings, .*",
        text,
    )
    assert "other linear layers" in parts.summary(model, parts.chosen(["q_proj"], "Model"))


def test_routers_and_experts_may_be_named():
    parts = Adaptable.of(tiny_model("qwen3_next"))
    assert parts.chosen(["shared_expert_gate"], "Model") == [*parts.routers]
    assert parts.chosen(["experts.down_proj"], "Model") == [
        f"model.layers.{i}.mlp.experts.down_proj" for i in (0, 1)
    ]
    with pytest.raises(
        InputError, match="'nothing' matches no linear layer of Model: give all-linear, or a list of"
    ):
        parts.chosen(["nothing"], "Model")


def test_dropout_of_experts_is_refused():
    with pytest.raises(InputError, match=r"dropout is 0\.1, and adapters of experts in one tensor have none"):
        LoRA(dropout=0.1, targets="all").apply(tiny_model("mixtral"))


@pytest.mark.parametrize(
    ("kind", "targets"), [("mixtral", "all"), ("gpt_oss", "all"), ("llama", "all-linear")]
)
def test_adapters_that_peft_reads_pass_the_check(kind, targets, tmp_path):
    model = adapted(kind, targets)
    check_adapter_export(model)
    save_adapter(model, model.state_dict(), tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(kind, spread=0.05), tmp_path)
    assert_close(logits(loaded), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "targets"), [
    ("qwen3_next", "all-linear"), ("qwen3_next", "all"), ("deepseek_v3", "all-linear"), ("mamba", "all-linear"),
])  # fmt: skip
def test_adapters_that_peft_would_put_elsewhere_are_refused_before_training(kind, targets):
    model = adapted(kind, targets)
    with pytest.raises(
        InputError, match=r"^peft [\d.]+ cannot read adapters of these layers of .* export.adapter to false"
    ):
        check_adapter_export(model)


def test_adapters_that_cannot_be_merged_are_refused_before_training(monkeypatch):
    model = adapted("llama", "all-linear")
    monkeypatch.setattr("dipo_pl.models.adapters.adapted_weights", lambda model: {"no.weight": "no"})
    with pytest.raises(
        InputError, match=r"cannot be merged into LlamaForCausalLM \(KeyError: .*export.adapter to true"
    ):
        check_export(model)
