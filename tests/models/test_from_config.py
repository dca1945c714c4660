"""Models with random weights: they depend on configuration, tokenizer and seed only; errors are one line."""

import copy
import json

import pytest
import torch
from tiny_models import TEXTS, save_tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from dipo_pl.errors import InputError
from dipo_pl.models.from_config import FromConfig

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
CONFIGS = {
    "llama": LLAMA,
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "phi": LLAMA | {"model_type": "phi"},
}


def source(config=LLAMA, vocab_size=280, **options):
    """A source whose tokenizer has been trained, as data modules do it first."""
    made = FromConfig(copy.deepcopy(config), vocab_size=vocab_size, **options)
    made.tokenizer(TEXTS)
    return made


def of_kind(kind, **options):
    return source(CONFIGS[kind], **options)


def same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", CONFIGS)
def test_weights_depend_on_the_seed_alone(kind):
    torch.manual_seed(1)
    first = of_kind(kind, seed=7).model()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = of_kind(kind, seed=7)
    assert same_weights(first, again.model())
    assert same_weights(first, again.model())
    assert torch.equal(torch.get_rng_state(), before)
    assert not same_weights(first, of_kind(kind, seed=8).model())


@pytest.mark.parametrize("kind", CONFIGS)
def test_vocabulary_and_special_tokens_are_the_tokenizers(kind):
    made = of_kind(kind)
    model = made.model()
    config = model.config
    assert len(made.tokenizer()) == config.vocab_size == 280
    assert (
        model.get_input_embeddings().weight.shape == model.get_output_embeddings().weight.shape == (280, 16)
    )
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)
    assert model.generation_config.eos_token_id == 1
    assert config.model_type == kind
    assert model.training


def test_values_reach_the_configuration_which_is_not_changed():
    config = LLAMA | {"num_hidden_layers": 3, "rope_theta": 5000.0}
    before = copy.deepcopy(config)
    made = FromConfig(config, vocab_size=280)
    values = made.model().config
    assert (values.num_hidden_layers, values.rope_parameters["rope_theta"]) == (3, 5000.0)
    assert config == before


def test_the_tokenizer_is_trained_once_and_smaller_where_texts_are_short():
    made = FromConfig(LLAMA, vocab_size=5000)
    assert made.tokenizer(TEXTS) is made.tokenizer(["other"]) is made.tokenizer()
    assert made.model().config.vocab_size == len(made.tokenizer()) < 400


def test_a_tokenizer_of_another_folder(tmp_path):
    folder = save_tiny_model(tmp_path / "other", vocab_size=270)
    made = FromConfig(LLAMA, vocab_size=999, tokenizer=str(folder))
    assert made.tokenizer(["other"]).get_vocab() == tiny_tokenizer(270).get_vocab()
    assert made.model().config.vocab_size == 270


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_attention_kernel(kernel):
    assert source(attention=kernel).model().config._attn_implementation == kernel


def test_a_configuration_file(tmp_path):
    # As published: with names that the architecture does not read.
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"pretraining_note": "x"}))
    assert same_weights(source(str(tmp_path / "config.json")).model(), source().model())


@pytest.mark.parametrize(("config", "message"), [
    ({}, r"^model.policy.config needs 'model_type' \(llama, gpt2, phi, \.\.\.\)$"),
    ({"model_type": "lama"}, "^model.policy.config is not a model configuration: .*lama"),
    (LLAMA | {"hidden_sise": 8}, "^model.policy.config: a llama configuration has no 'hidden_sise'$"),
    ({"model_type": "gpt2", "num_layers": 8}, "^model.policy.config: a gpt2 .* has no 'num_layers'$"),
    (LLAMA | {"hidden_size": "16"}, "^model.policy.config is not a model configuration: .*str"),
    (LLAMA | {"hidden_size": 0}, "^cannot create a random llama: "),
    ({"model_type": "vit"}, "^cannot create a random vit: .*AutoModelForCausalLM"),
])  # fmt: skip
def test_a_configuration_of_no_model_is_refused(config, message):
    with pytest.raises(InputError, match=message) as raised:
        source(config).model()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_an_unusable_file_is_refused(tmp_path, content):
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=rf"^cannot read .*{file}: [^\n]*$|^model.policy.config needs"):
        source(str(file)).model()


def test_a_kernel_that_is_not_installed_is_refused(monkeypatch):
    def refuse(*_, **__):
        raise ImportError("FlashAttention2 is not\ninstalled")

    made = source(attention="flash_attention_2")
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", refuse)
    with pytest.raises(InputError, match=r"^cannot create a random llama: FlashAttention2 is not installed$"):
        made.model()


@pytest.mark.parametrize("kind", ["llama", "phi"])
def test_gradient_checkpointing_gives_equal_gradients_also_where_inputs_need_none(kind):
    """Reentrant checkpointing would give the first layer no gradient here."""
    ids, found = torch.tensor([[0, 5, 9, 40, 80, 1]]), []
    for checkpointing in (False, True):
        model = of_kind(kind, gradient_checkpointing=checkpointing).model()
        assert model.is_gradient_checkpointing is checkpointing
        model.get_input_embeddings().requires_grad_(False)
        model(ids, labels=ids, use_cache=False).loss.backward()
        found.append({name: each.grad for name, each in model.named_parameters() if each.requires_grad})
    assert all(each is not None for each in found[0].values())
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)
