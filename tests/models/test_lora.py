"""Adapters, on tiny models of every kind of linear layer, head and dtype."""

import copy
import json
import math
import sys
import warnings

import pytest
import torch
from peft import PeftModel
from tiny_models import ARCHITECTURES, adapted_model, adapters, tiny_model
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from dipo_pl.errors import InputError
from dipo_pl.models.adapters import merged, save_adapter, weights_in_use
from dipo_pl.models.from_config import FromConfig
from dipo_pl.models.lora import LoRA

IDS = torch.tensor([[1, 5, 9, 40, 33, 2]])
DTYPES = (torch.float32, torch.bfloat16)


def bare(kind, dtype=torch.float32):
    return tiny_model(kind, spread=0.1, dtype=dtype)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def change_of(model, name, alpha, rank):
    """(alpha / rank) B A of a layer, entry by entry in float64."""
    a, b = (model.state_dict()[f"{name}.lora_{each}.default.weight"].double() for each in "AB")
    rows = [[sum(b[i, k] * a[k, j] for k in range(rank)) for j in range(a.shape[1])] for i in range(len(b))]
    return torch.tensor(rows, dtype=torch.float64) * alpha / rank


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_linear_layer_but_the_head_is_adapted_and_nothing_else_is_trained(kind):
    plain = bare(kind)
    linear = {
        name
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not plain.get_output_embeddings()
    }
    model = adapted_model(kind)
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert trained == {f"{name}.lora_{each}.default.weight" for name in linear for each in "AB"}
    assert len(linear) == {"llama": 14, "gpt2": 8, "phi": 12, "gemma2": 14, "qwen2": 14}[kind]
    # The base's own shapes decide: [rank, in] and [out, rank].
    first = "transformer.h.0.attn.c_attn" if kind == "gpt2" else "model.layers.0.self_attn.q_proj"
    shapes = [tuple(adapters(model)[f"{first}.lora_{each}.default.weight"].shape) for each in "AB"]
    assert shapes == [(3, 16), (48 if kind == "gpt2" else 16, 3)]


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "of_adapters"), [*zip(DTYPES, [torch.float32] * 2, strict=True), [torch.float64] * 2]
)
def test_training_starts_from_the_model_as_it_is(kind, dtype, of_adapters):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = adapted_model(kind, dtype, trained=False)
    assert torch.equal(logits(model), logits(bare(kind, dtype)))
    assert {each.dtype for each in adapters(model).values()} == {of_adapters}
    assert {each.dtype for name, each in model.named_parameters() if "lora_" not in name} == {dtype}


@pytest.mark.parametrize(
    ("kind", "name"), [("phi", "model.layers.1.mlp.fc1"), ("gpt2", "transformer.h.1.mlp.c_fc")]
)
def test_a_layer_follows_its_definition(kind, name):
    plain, model = bare(kind, torch.float64).get_submodule(name), adapted_model(kind, torch.float64)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert_close(model.get_submodule(name)(x), plain(x) + x @ change_of(model, name, 12, 3).T)


def test_starting_values_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one = adapters(adapted_model(trained=False, seed=7))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, other = (adapters(adapted_model(trained=False, seed=seed)) for seed in (7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    for name, each in one.items():
        assert torch.equal(each, again[name])
        if "lora_B" in name:
            assert not each.any()
        else:
            assert not torch.equal(each, other[name])
            bound = 1 / math.sqrt(each.shape[1])
            assert bound / 2 < each.abs().max() <= bound
    assert LoRA().seed == 0


def test_dropout_is_of_the_input_of_an_adapter():
    x = torch.ones(1, 16)
    layer = adapted_model(dropout=0.5).get_submodule("model.layers.0.self_attn.q_proj")
    torch.manual_seed(0)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(("targets", "expected"), [
    (["q_proj", "k_proj"], {f"model.layers.{i}.self_attn.{each}_proj" for i in (0, 1) for each in "qk"}),
    (["layers.1.mlp.up_proj"], {"model.layers.1.mlp.up_proj"}),
    (r".*\.1\..*[qk]_proj", {"model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"}),
])  # fmt: skip
def test_targets(targets, expected):
    assert {name.partition(".lora_")[0] for name in adapters(adapted_model(targets=targets))} == expected


NAMES = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
NOWHERE = [(["q_proj", "qproj"], "qproj"), ("q_proj", "q_proj"), (["q.proj"], "q.proj")]
NOWHERE += [([each], each) for each in ("lm_head", "embed_tokens", "self_attn", "proj")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": []}, "targets is empty: name layers, or all-linear"),
        ({"targets": "*"}, "targets: '*' is not a regular expression (nothing to repeat at position 0)"),
        *(
            (
                {"targets": given},
                f"targets: '{named}' matches no linear layer of LlamaForCausalLM: give all-linear, or a list of {NAMES}",
            )
            for given, named in NOWHERE
        ),
    ],
)
def test_other_options_are_refused(options, message):
    with pytest.raises(InputError) as raised:
        adapted_model(**options)
    assert str(raised.value) == f"model.policy.adapter.{message}"


def test_without_peft_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        InputError, match=r"^model.policy.adapter needs peft .*pip install 'dipo-pl\[lora\]'$"
    ):
        adapted_model()


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_matrix_moves_under_gradient_checkpointing(kind, dtype):
    model = FromConfig({}, gradient_checkpointing=True).prepare(adapted_model(kind, dtype, trained=False))
    start = {name: each.clone() for name, each in model.named_parameters()}
    # Without weight decay, which would move a matrix that no gradient reaches.
    optimizer = torch.optim.AdamW(adapters(model).values(), lr=1e-3, weight_decay=0.0)
    for _ in range(3):
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, each in model.named_parameters() if not torch.equal(each, start[name])}
    assert moved == set(adapters(model))
    assert model.training


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_merged_weights_make_a_plain_model_of_equal_logits(kind, tmp_path):
    model = adapted_model(kind)
    before = copy.deepcopy(model.state_dict())
    weights = merged(model, model.state_dict())
    assert weights.keys() == bare(kind).state_dict().keys()
    model.save_pretrained(tmp_path, state_dict=weights)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert not (tmp_path / "adapter_config.json").exists()
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
    assert (logits(loaded) - logits(bare(kind))).abs().max() > 0.01
    tied = kind in ("gpt2", "gemma2", "qwen2")
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) is tied


@pytest.mark.parametrize(
    ("kind", "name"), [("llama", "model.layers.1.mlp.down_proj"), ("gpt2", "transformer.h.0.mlp.c_proj")]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_merged_weights_are_rounded_once(kind, name, dtype):
    model = adapted_model(kind, dtype)
    base = model.state_dict()[f"{name}.base_layer.weight"].double()
    change = change_of(model, name, 12, 3)
    change = change.T if kind == "gpt2" else change
    found = merged(model, model.state_dict())[f"{name}.weight"]
    assert found.dtype == dtype
    assert_close(found, (base + change).to(dtype), rtol=1e-12 if dtype == torch.float64 else 0, atol=0)
    # Twice would be: the product rounded, then the sum.
    twice = (base.to(dtype) + change.to(dtype)).to(dtype)
    assert dtype == torch.float64 or not torch.equal(found, twice)


def test_weights_of_another_model_can_be_merged():
    model, other = adapted_model(), adapted_model(seed=5)
    given = model.state_dict() | adapters(other)
    names = list(given)
    ours, theirs = merged(model, given), merged(other, other.state_dict())
    assert list(given) == names
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    plain = bare("llama")
    assert_close(merged(plain, plain.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)


def test_weights_in_use_are_those_without_adapters_that_are_zero():
    model, plain = adapted_model(trained=False), bare("llama")
    assert len(weights_in_use(model)) == len(weights_in_use(plain)) == len(list(plain.parameters()))
    next(each for name, each in adapters(model).items() if "lora_B" in name).data[0, 0] = 0.1
    assert len(weights_in_use(model)) == len(list(plain.parameters())) + 2


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_peft_reads_a_saved_adapter(kind, tmp_path):
    model = adapted_model(kind)
    save_adapter(model, model.state_dict(), tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    loaded = PeftModel.from_pretrained(bare(kind), tmp_path)
    assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    assert not any(each.requires_grad for each in loaded.parameters())
    # The model itself is not changed.
    assert model.peft_config["default"].inference_mode is False
    assert all(each.requires_grad for each in adapters(model).values())


def test_the_configuration_of_a_saved_adapter(tmp_path):
    bare("gpt2").save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    LoRA(rank=3, alpha=12.0, dropout=0.25).apply(model)
    texts = []
    for name in ("one", "two"):
        save_adapter(model, model.state_dict(), tmp_path / name)
        texts.append((tmp_path / name / "adapter_config.json").read_text())
    assert texts[0] == texts[1]
    config = json.loads(texts[0])
    expected = {
        "r": 3, "lora_alpha": 12.0, "lora_dropout": 0.25, "task_type": "CAUSAL_LM", "inference_mode": True,
        "fan_in_fan_out": True, "base_model_name_or_path": str(tmp_path / "base"),
        "target_modules": sorted(config["target_modules"]),
    }  # fmt: skip
    assert expected.items() <= config.items()
