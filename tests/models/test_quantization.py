"""Weights rounded by torchao against a slow definition; what is not rounded; what cannot be."""

import sys

import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM

from dipo_pl.errors import InputError
from dipo_pl.models.head import OutputHead, check_head
from dipo_pl.models.lora import LoRA
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.models.quantization import normal_levels, quantize
from dipo_pl.models.tokenizer import train_tokenizer

# Widths that 32 does not divide; GPT-2 holds its weights transposed and ties its head; Phi has biases.
CONFIGS = {
    "llama": {"hidden_size": 40, "intermediate_size": 72},
    "gpt2": {"hidden_size": 36},
    "phi": {"hidden_size": 32, "intermediate_size": 64},
}
LAYERS = {"llama": 7, "gpt2": 4, "phi": 6}
IDS = torch.tensor([[0, 5, 9, 40, 80, 1]])


def model_of(kind: str, dtype: torch.dtype = torch.float32):
    return tiny_model(kind, seed=1, dtype=dtype, vocab_size=300, num_hidden_layers=1, **CONFIGS.get(kind, {}))


def is_rounded(before, after, bits: int, group: int) -> None:
    """[out, in]: each group of a row holds whole multiples of 2 max|w| / (2^b - 1), none further off than half of it."""
    for row, new in zip(before.double().tolist(), after.double().tolist(), strict=True):
        for start in range(0, len(row), group):
            old = row[start : start + group]
            scale = 2 * max(map(abs, old)) / (2**bits - 1)
            for was, became in zip(old, new[start : start + group], strict=True):
                whole = became / scale
                assert abs(whole - round(whole)) < 1e-3
                assert -(2 ** (bits - 1)) <= round(whole) <= 2 ** (bits - 1) - 1
                assert abs(became - was) <= scale / 2 * 1.001


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("bits", "group"), [(8, 10_000), (4, 32)])
def test_linear_layers_are_rounded_and_nothing_else(kind, bits, group):
    model = model_of(kind)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    quantize(model, f"int{bits}")
    changed = [name for name, each in model.state_dict().items() if not torch.equal(each, before[name])]
    assert len(changed) == LAYERS[kind]
    for name in changed:
        assert not any(part in name for part in ("embed", "wte", "wpe", "lm_head", "norm", "ln_", "bias"))
        old, new = before[name], model.state_dict()[name]
        assert new.dtype == torch.float32
        assert new.is_contiguous()
        is_rounded(*((old.T, new.T) if kind == "gpt2" else (old, new)), bits, group)


# As bitsandbytes prints them, and QLoRA's appendix E.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def test_the_levels_of_nf4_are_the_published_ones():
    assert normal_levels().tolist() == pytest.approx(NF4, abs=2e-7)


@pytest.mark.parametrize("kind", CONFIGS)
def test_nf4_takes_the_nearest_level_of_each_block(kind):
    """Widths that 64 does not divide, and a block of zeros."""
    model = model_of(kind)
    if kind == "llama":
        model.model.layers[0].mlp.down_proj.weight.data[0, 64:] = 0
    before = {name: each.clone() for name, each in model.state_dict().items()}
    quantize(model, "nf4")
    changed = [name for name, each in model.state_dict().items() if not torch.equal(each, before[name])]
    assert len(changed) == LAYERS[kind]
    for name in changed:
        old, new = before[name], model.state_dict()[name]
        pairs = zip(*((old.T, new.T) if kind == "gpt2" else (old, new)), strict=True)
        for row, rounded in pairs:
            for start in range(0, len(row), 64):
                block = row[start : start + 64].tolist()
                scale = max(map(abs, block))
                for was, became in zip(block, rounded[start : start + 64].tolist(), strict=True):
                    nearest = min(abs(was - level * scale) for level in NF4)
                    assert abs(became - was) == pytest.approx(nearest, abs=1e-6)
                    assert min(abs(became - level * scale) for level in NF4) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_fewer_bits_are_further_off(kind, dtype):
    exact = model_of(kind, dtype)(IDS).logits.detach().double()
    errors = []
    for bits in ("int8", "int4"):
        model = model_of(kind, dtype)
        quantize(model, bits)
        check_head(model)
        assert OutputHead.of(model).weight.dtype == dtype
        with torch.no_grad():
            errors.append(float((model(IDS).logits.double() - exact).square().mean()))
    assert 0 < errors[0] < errors[1] / 10


def test_half_precision_loses_nothing_more_than_its_own_digits():
    half = model_of("llama", torch.bfloat16)
    exact = AutoModelForCausalLM.from_config(half.config, dtype=torch.float32)
    exact.load_state_dict(half.state_dict())
    for model in (half, exact):
        quantize(model, "int8")
    expected = exact.state_dict()
    assert all(torch.equal(each, expected[name].bfloat16()) for name, each in half.state_dict().items())


@pytest.fixture
def saved(tmp_path):
    """A folder with a model and a tokenizer."""
    tokenizer = train_tokenizer(["Who wrote the book? She wrote the book."], 280)
    model_of("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_policy_gives_a_quantised_model(saved):
    plain, eight, four = (
        Pretrained(str(saved), quantization=kind).model().state_dict() for kind in (None, "int8", "int4")
    )
    name = "model.layers.0.mlp.up_proj.weight"
    is_rounded(plain[name], eight[name], 8, 10_000)
    is_rounded(plain[name], four[name], 4, 32)
    assert torch.equal(plain["lm_head.weight"], four["lm_head.weight"])


def test_weights_that_are_no_linear_layers_are_refused():
    """Half a model rounded says nothing about rounding."""
    model = model_of("mixtral")
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(
        InputError,
        match=r"^MixtralForCausalLM cannot be quantized here: model\.layers\.0\.[\w.]+ is not the weight",
    ):
        quantize(model, "int8")
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_without_torchao(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(InputError, match=r"pip install 'dipo-pl\[quantize\]'$"):
        Pretrained(str(saved), quantization="int8").model()
    Pretrained(str(saved)).model()


def test_adapters_are_for_training(saved):
    with pytest.raises(InputError, match="only for measuring"):
        Pretrained(str(saved), quantization="int8", adapter=LoRA())
