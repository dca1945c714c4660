"""The output head against tiny random transformers models of every kind that is known."""

import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_config, tiny_model
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, ModernBertDecoderConfig

from dipo_pl.errors import InputError
from dipo_pl.models.head import OutputHead, check_head
from dipo_pl.models.hidden_states import decoder_states

KINDS = [*ARCHITECTURES, "granite", "cohere", "llama4_text"]


def build(kind, dtype=torch.float32):
    """Logits of order 1, so that no tolerance hides a cap or a bias."""
    model = tiny_model(kind, num_hidden_layers=1)
    layer = model.get_output_embeddings()
    with torch.no_grad():
        layer.weight.mul_(10)
        if layer.bias is not None:
            layer.bias.copy_(torch.randn(61, generator=torch.Generator().manual_seed(0)))
    return model.to(dtype)


@pytest.fixture(scope="module")
def models():
    return {kind: build(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_check_passes(models, kind):
    check_head(models[kind])


@pytest.mark.parametrize("kind", ["llama", "phi", "gemma2", "cohere"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_check_passes_in_half_precision(kind, dtype):
    check_head(build(kind, dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_models_own(models, kind):
    """Right-padded, with a bool mask as batches have: at every real position."""
    model = models[kind].eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 61, (2, 9), generator=generator)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False
    with torch.no_grad():
        states = decoder_states(model, ids, mask)
        logits = OutputHead.of(model).logits(states.flatten(0, 1)).view(2, 9, 61)
        theirs = model(input_ids=ids, attention_mask=mask).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits[mask], theirs[mask], rtol=1e-5, atol=1e-5)


def test_each_model_brings_what_it_is_here_for(models):
    heads = {kind: OutputHead.of(model) for kind, model in models.items()}
    for kind in ("gpt2", "qwen2"):
        assert heads[kind].weight is models[kind].get_input_embeddings().weight
    assert heads["llama"].weight is not models["llama"].get_input_embeddings().weight
    assert heads["phi"].bias is not None
    assert heads["phi"].bias.abs().max().item() > 0.5
    assert heads["gemma2"].softcap == 0.5
    assert heads["granite"].scale == 1 / 8
    assert heads["cohere"].scale == 0.0625
    for kind in ("llama", "gpt2", "qwen2"):
        assert (heads[kind].bias, heads[kind].scale, heads[kind].softcap) == (None, 1.0, None)


def test_a_head_of_several_layers_is_refused_for_what_it_is():
    """ModernBERT calls its last matrix its decoder."""
    config = ModernBertDecoderConfig(
        vocab_size=280, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    with pytest.raises(
        InputError, match="the logits of ModernBertDecoderForCausalLM are not its output layer"
    ):
        check_head(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_alters_its_logits_is_refused(kind):
    model = build(kind)
    forward = model.forward

    def doubled(*args, **options):
        output = forward(*args, **options)
        output.logits = output.logits * 2
        return output

    model.forward = doubled
    with pytest.raises(InputError, match=rf"the logits of {type(model).__name__} are not its output layer"):
        check_head(model)


@pytest.mark.parametrize(("kind", "option", "value"), [
    ("gemma2", "final_logit_softcapping", None),
    ("granite", "logits_scaling", 1.0),
    ("cohere", "logit_scale", 1.0),
])  # fmt: skip
def test_what_is_not_read_from_the_config_is_noticed(kind, option, value):
    """As for an architecture whose option has a name that is not known here."""
    model = build(kind)
    forward, config = model.forward, model.config
    original = getattr(config, option)

    def with_option(*args, **options):
        setattr(config, option, original)
        try:
            return forward(*args, **options)
        finally:
            setattr(config, option, value)

    if kind == "cohere":  # it reads its config once
        assert model.logit_scale == original
    model.forward = with_option
    setattr(config, option, value)
    with pytest.raises(InputError, match="changes its logits in a way that is not supported here"):
        check_head(model)


def test_bias_is_noticed(monkeypatch):
    model = build("phi")
    of = OutputHead.of

    def without_bias(model):
        head = of(model)
        return OutputHead(head.weight, None, head.scale, head.softcap)

    monkeypatch.setattr(OutputHead, "of", staticmethod(without_bias))
    with pytest.raises(InputError, match="PhiForCausalLM"):
        check_head(model)


@pytest.mark.parametrize("training", [True, False])
def test_check_leaves_the_model_as_it_was(training):
    """In its mode, without gradients; it looks with dropout off (GPT-2 has 0.1)."""
    model = build("gpt2").train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recording = []
    model.get_decoder().register_forward_pre_hook(lambda *_: recording.append(torch.is_grad_enabled()))
    check_head(model)
    assert recording == [False, False]
    assert all(module.training is training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_soft_cap_of_another_name_is_known():
    model = tiny_model("recurrent_gemma", logits_soft_cap=0.5)
    assert OutputHead.of(model).softcap == 0.5
    check_head(model)


def test_a_model_that_changes_its_own_weights_is_refused():
    """RWKV halves weights of its later layers in eval mode: they would be exported like that."""
    check_head(tiny_model("rwkv", num_hidden_layers=3, rescale_every=0))
    with pytest.raises(InputError, match="RwkvForCausalLM changes its own weights in an evaluation: set"):
        check_head(tiny_model("rwkv", num_hidden_layers=3, rescale_every=2).train())


def test_a_vocabulary_smaller_than_the_probe():
    check_head(tiny_model(vocab_size=3))


def test_a_model_without_a_linear_head_is_refused():
    decoder = AutoModel.from_config(tiny_config())
    with pytest.raises(InputError, match=r"LlamaModel has no linear output head \(got NoneType\)"):
        OutputHead.of(decoder)

    model = build("llama")
    model.lm_head = nn.Sequential(nn.Linear(16, 61))
    with pytest.raises(InputError, match=r"LlamaForCausalLM has no linear output head \(got Sequential\)"):
        check_head(model)


def test_logits_by_hand():
    """h = 3, W = (1, -1), b = (1, 0): (4, -3); scale 2: (8, -6); cap 10: 10 tanh(0.8), 10 tanh(-0.6)."""
    head = OutputHead(torch.tensor([[1.0], [-1.0]]), torch.tensor([1.0, 0.0]), scale=2.0, softcap=10.0)
    expected = 10 * torch.tanh(torch.tensor([[0.8, -0.6]]))
    torch.testing.assert_close(head.logits(torch.tensor([[3.0]])), expected)


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_linear_gradient_is_autograds(scale, softcap):
    generator = torch.Generator().manual_seed(0)
    linear = torch.randn(4, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    logits = linear * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    gradient = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(logits, linear, gradient)
    head = OutputHead(torch.zeros(7, 1), scale=scale, softcap=softcap)
    torch.testing.assert_close(head.linear_gradient_(gradient.clone(), logits.detach()), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_cast(bias):
    head = OutputHead(torch.randn(4, 2), torch.randn(4) if bias else None, 0.5, 3.0)
    cast = head.cast(torch.bfloat16)
    assert cast.weight.dtype == torch.bfloat16
    assert (cast.bias is None) is not bias
    assert cast.bias is None or cast.bias.dtype == torch.bfloat16
    assert (cast.scale, cast.softcap) == (0.5, 3.0)
