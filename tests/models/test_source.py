"""Where the policy comes from: random weights by their seed, saved weights as they were, errors in a line."""

import copy
import json
import re
import shutil

import pytest
import torch
import transformers
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer

from dipo_pl.errors import InputError
from dipo_pl.models.from_config import FromConfig
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.models.tokenizer import train_tokenizer

TEXTS = ["Who wrote the book? She wrote the book.", "Where was she born? She was born there."]
CONFIGS = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "phi": {
        "model_type": "phi",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "partial_rotary_factor": 0.5,
        "rope_theta": 5000.0,
    },
}
IDS = torch.tensor([[0, 5, 9, 40, 80, 1]])


def from_config(config, vocab_size=280, **options):
    """A policy whose tokenizer has been trained, as data modules do it first."""
    policy = FromConfig(copy.deepcopy(config), vocab_size=vocab_size, **options)
    policy.tokenizer(TEXTS)
    return policy


def same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of each architecture with a model and its tokenizer."""

    def save(kind):
        folder = tmp_path_factory.mktemp(kind)
        policy = from_config(CONFIGS[kind], seed=3)
        policy.model().save_pretrained(folder)
        policy.tokenizer().save_pretrained(folder)
        return folder

    return {kind: save(kind) for kind in CONFIGS}


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the llama folder, to be spoiled."""
    return shutil.copytree(saved["llama"], tmp_path / "model")


def change_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def one_line(raised):
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    return str(raised.value)


class TestFromConfig:
    @pytest.mark.parametrize("kind", CONFIGS)
    def test_weights_depend_on_the_seed_alone(self, kind):
        torch.manual_seed(1)
        first = from_config(CONFIGS[kind], seed=7).model()
        torch.manual_seed(2)
        before = torch.get_rng_state()
        policy = from_config(CONFIGS[kind], seed=7)
        again = policy.model()
        assert torch.equal(torch.get_rng_state(), before)
        assert same_weights(first, again)
        assert same_weights(policy.model(), again)
        assert not same_weights(from_config(CONFIGS[kind], seed=8).model(), again)

    @pytest.mark.parametrize("kind", CONFIGS)
    def test_takes_vocabulary_and_special_tokens_from_the_tokenizer(self, kind):
        policy = from_config(CONFIGS[kind])
        model = policy.model()
        assert len(policy.tokenizer()) == model.config.vocab_size == 280
        assert model.get_input_embeddings().weight.shape == (280, 16)
        assert model.get_output_embeddings().weight.shape == (280, 16)
        config = model.config
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)
        assert model.generation_config.eos_token_id == 1
        assert model.config.model_type == kind
        assert model.training

    def test_values_reach_the_configuration(self):
        config = from_config(CONFIGS["phi"]).model().config
        assert config.num_hidden_layers == 2
        assert config.rope_parameters["partial_rotary_factor"] == 0.5
        assert config.rope_parameters["rope_theta"] == 5000.0

    def test_a_smaller_vocabulary_where_the_texts_are_short(self):
        assert from_config(CONFIGS["llama"], vocab_size=5000).model().config.vocab_size < 400

    def test_the_tokenizer_is_made_once(self):
        policy = FromConfig(CONFIGS["llama"], vocab_size=280)
        assert policy.tokenizer(TEXTS) is policy.tokenizer(["other"]) is policy.tokenizer()

    def test_a_tokenizer_of_another_folder(self, saved):
        policy = FromConfig(CONFIGS["gpt2"], vocab_size=999, tokenizer=str(saved["llama"]))
        assert (
            policy.tokenizer(["other"]).get_vocab() == from_config(CONFIGS["llama"]).tokenizer().get_vocab()
        )
        assert policy.model().config.vocab_size == 280

    def test_the_configuration_is_not_changed(self):
        config = copy.deepcopy(CONFIGS["llama"])
        policy = FromConfig(config, vocab_size=280)
        policy.model()
        assert config == CONFIGS["llama"]

    def test_attention_kernel(self):
        kernels = [from_config(CONFIGS["llama"], attention=each).model() for each in ("eager", "sdpa")]
        assert [model.config._attn_implementation for model in kernels] == ["eager", "sdpa"]

    def test_a_configuration_file(self, saved, tmp_path):
        # As published: with names that the architecture does not read.
        published = json.loads((saved["llama"] / "config.json").read_text()) | {"pretraining_note": "x"}
        file = tmp_path / "config.json"
        file.write_text(json.dumps(published))
        assert same_weights(from_config(str(file)).model(), from_config(CONFIGS["llama"]).model())

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({}, r"^model.policy.config needs 'model_type' \(llama, gpt2, phi, \.\.\.\)$"),
            ({"model_type": "lama"}, "^model.policy.config is not a model configuration: .*lama"),
            (CONFIGS["llama"] | {"hidden_sise": 8}, "^model.policy.config: a llama .* has no 'hidden_sise'$"),
            (CONFIGS["gpt2"] | {"num_layers": 8}, "^model.policy.config: a gpt2 .* has no 'num_layers'$"),
            (
                CONFIGS["llama"] | {"hidden_size": "16"},
                "^model.policy.config is not a model configuration: .*str",
            ),
            (CONFIGS["llama"] | {"hidden_size": 0}, "^cannot create a random llama: "),
            ({"model_type": "vit"}, "^cannot create a random vit: .*AutoModelForCausalLM"),
        ],
    )
    def test_what_is_no_model(self, config, message):
        with pytest.raises(InputError, match=message) as raised:
            from_config(config).model()
        one_line(raised)

    def test_a_kernel_that_is_not_there(self, monkeypatch):
        def refuse(*_, **__):
            raise ImportError("FlashAttention2 is not\ninstalled")

        policy = from_config(CONFIGS["llama"], attention="flash_attention_2")
        monkeypatch.setattr(AutoModelForCausalLM, "from_config", refuse)
        with pytest.raises(
            InputError, match=r"^cannot create a random llama: FlashAttention2 is not installed$"
        ):
            policy.model()

    @pytest.mark.parametrize("content", [None, "{", "[]"])
    def test_an_unusable_file(self, tmp_path, content):
        file = tmp_path / "config.json"
        if content is not None:
            file.write_text(content)
        with pytest.raises(
            InputError, match=rf"^cannot read .*{file}: |^model.policy.config needs"
        ) as raised:
            from_config(str(file)).model()
        one_line(raised)


class TestPretrained:
    @pytest.mark.parametrize("kind", CONFIGS)
    def test_a_saved_model_is_what_it_was(self, saved, kind):
        original = from_config(CONFIGS[kind], seed=3)
        policy = Pretrained(str(saved[kind]))
        model = policy.model()
        assert model.training
        with torch.no_grad():
            ours, theirs = model.eval()(IDS).logits, original.model().eval()(IDS).logits
        assert_close(ours, theirs, rtol=0, atol=0)
        assert policy.tokenizer().get_vocab() == original.tokenizer().get_vocab()
        assert policy.tokenizer()("She wrote").input_ids == original.tokenizer()("She wrote").input_ids
        assert policy.source == str(saved[kind])

    def test_a_model_without_a_tokenizer_takes_another_folders(self, saved, tmp_path):
        bare = shutil.copytree(
            saved["llama"], tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "special*")
        )
        policy = Pretrained(str(bare), tokenizer=str(saved["gpt2"]))
        assert policy.tokenizer().get_vocab() == Pretrained(str(saved["gpt2"])).tokenizer().get_vocab()
        assert type(policy.model()).__name__ == "LlamaForCausalLM"

    def test_a_fresh_model_each_time(self, saved):
        policy = Pretrained(str(saved["llama"]))
        first, second = policy.model(), policy.model()
        assert first is not second
        with torch.no_grad():
            first.get_input_embeddings().weight.zero_()
        assert second.get_input_embeddings().weight.any()

    def test_dtype_and_attention_kernel(self, saved):
        model = Pretrained(str(saved["llama"]), dtype="bfloat16", attention="eager").model()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model.config._attn_implementation == "eager"
        assert Pretrained(str(saved["llama"])).model().dtype == torch.float32

    @pytest.mark.parametrize(("revision", "asked"), [(None, "main"), ("v2", "v2")])
    def test_what_is_asked_of_transformers(self, monkeypatch, revision, asked):
        seen = {}

        def remember(name):
            def from_pretrained(path, **options):
                seen[name] = path, options
                raise OSError("stop here")

            return from_pretrained

        monkeypatch.setattr(AutoTokenizer, "from_pretrained", remember("tokenizer"))
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", remember("model"))
        policy = Pretrained("who/what", revision=revision)
        for load in (policy.tokenizer, lambda: policy._load_model(None)):
            with pytest.raises(InputError, match=r"stop here$"):
                load()
        common = {"revision": asked, "trust_remote_code": False}
        assert seen["tokenizer"] == ("who/what", common)
        path, options = seen["model"]
        assert path == "who/what"
        assert options == common | {
            "dtype": "auto", "use_safetensors": True, "output_loading_info": True, "attn_implementation": None
        }  # fmt: skip

    @pytest.mark.parametrize(
        "path", ["/no/such/folder", "./folder", "../folder", "~/folder", "runs/target/hf"]
    )
    @pytest.mark.parametrize("what", ["tokenizer", "model"])
    def test_a_missing_folder(self, monkeypatch, tmp_path, path, what):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            InputError, match=rf"^no model folder {re.escape(path)}: give a folder with "
        ) as raised:
            getattr(Pretrained(path), what)()
        one_line(raised)

    def test_out_of_reach(self, monkeypatch):
        def refuse(*_, **__):
            raise OSError("We couldn't connect to\n  the hub.\nCheck your connection.")

        monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
        with pytest.raises(InputError) as raised:
            Pretrained("who/what").tokenizer()
        message = (
            "cannot load the tokenizer of 'who/what': We couldn't connect to the hub. Check your connection."
        )
        assert str(raised.value) == message

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(
            InputError, match=f"^no tokenizer in the folder {tmp_path}: put its tokenizer.json"
        ):
            Pretrained(str(tmp_path)).model()

    def test_no_configuration(self, folder):
        (folder / "config.json").unlink()
        message = f"^cannot load the model of '{folder}': .*config.json"
        with pytest.raises(InputError, match=message) as raised:
            Pretrained(str(folder)).model()
        one_line(raised)

    def test_no_tokenizer(self, folder):
        for file in folder.glob("tokenizer*"):
            file.unlink()
        with pytest.raises(InputError, match=f"^no tokenizer in the folder {folder}: put its tokenizer.json"):
            Pretrained(str(folder)).model()

    def test_a_broken_tokenizer(self, folder):
        (folder / "tokenizer.json").write_text("{")
        with pytest.raises(InputError, match=f"^cannot load the tokenizer of '{folder}': ") as raised:
            Pretrained(str(folder)).model()
        one_line(raised)

    def test_a_pickle_is_not_opened(self, folder, monkeypatch):
        model = Pretrained(str(folder)).model()
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
        message = f"^{folder} has no \\*.safetensors, only pytorch_model.bin, a pickle, which can run code when it is read"
        with pytest.raises(InputError, match=message) as raised:
            Pretrained(str(folder)).model()
        one_line(raised)

    def test_a_file_cut_short(self, folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(InputError, match=f"^cannot load the model of '{folder}': ") as raised:
            Pretrained(str(folder)).model()
        one_line(raised)

    def test_weights_that_are_missing(self, folder):
        change_config(folder, num_hidden_layers=3)
        message = (
            rf"^the checkpoint of '{folder}' lacks 9 weights of LlamaForCausalLM "
            r"\(model.layers.2.input_layernorm.weight, .*, \.\.\.\): give a complete causal language model$"
        )
        with pytest.raises(InputError, match=message) as raised:
            Pretrained(str(folder)).model()
        one_line(raised)

    def test_weights_of_another_shape(self, folder):
        change_config(folder, intermediate_size=48)
        with pytest.raises(InputError, match=f"^cannot load the model of '{folder}': ") as raised:
            Pretrained(str(folder)).model()
        one_line(raised)

    def test_a_tokenizer_larger_than_the_vocabulary(self, folder):
        train_tokenizer(TEXTS, 281).save_pretrained(folder)
        message = rf"^the tokenizer of {folder} has 281 tokens and the model embeds 280: they do not belong together"
        with pytest.raises(InputError, match=message):
            Pretrained(str(folder)).model()

    def test_a_vocabulary_padded_beyond_the_tokenizer_is_usual(self, folder):
        train_tokenizer(TEXTS, 270).save_pretrained(folder)
        assert Pretrained(str(folder)).model().config.vocab_size == 280

    def test_a_tokenizer_without_offsets(self, tmp_path):
        ByT5Tokenizer().save_pretrained(tmp_path)
        message = rf"^the tokenizer of {tmp_path} gives no character offsets, .*: use its fast version"
        with pytest.raises(InputError, match=message):
            Pretrained(str(tmp_path)).tokenizer()


class TestForeignCode:
    """A folder may name Python files of its own; they run only where it is allowed."""

    REFUSAL = "comes with its own code: read that code, then set model.policy.trust_remote_code to true"
    MODEL = """
open({marker!r}, "w").close()
from transformers import LlamaConfig, LlamaForCausalLM
class TheirConfig(LlamaConfig):
    model_type = "theirs"
class TheirModel(LlamaForCausalLM):
    config_class = TheirConfig
"""

    @pytest.fixture
    def marked(self, folder, tmp_path, monkeypatch):
        """The folder, and the file that its code makes when it runs."""
        marker = tmp_path / "ran"
        (folder / "theirs.py").write_text(self.MODEL.format(marker=str(marker)))
        classes = {"AutoConfig": "theirs.TheirConfig", "AutoModelForCausalLM": "theirs.TheirModel"}
        change_config(folder, model_type="theirs", auto_map=classes)
        monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
        return folder, marker

    def test_is_refused_and_not_run(self, marked):
        folder, marker = marked
        with pytest.raises(InputError, match=f"^the model of '{folder}' {self.REFUSAL}"):
            Pretrained(str(folder)).model()
        assert not marker.exists()

    def test_runs_where_it_is_allowed(self, marked):
        # So that the test above would see it.
        folder, marker = marked
        assert type(Pretrained(str(folder), trust_remote_code=True).model()).__name__ == "TheirModel"
        assert marker.exists()

    def test_a_known_architecture_is_loaded_without_its_code(self, marked):
        folder, marker = marked
        change_config(folder, model_type="llama")
        assert type(Pretrained(str(folder)).model()).__name__ == "LlamaForCausalLM"
        assert not marker.exists()

    def test_of_a_tokenizer_is_refused_too(self, marked):
        folder, marker = marked
        change_config(folder, model_type="llama")
        file = folder / "tokenizer_config.json"
        values = {
            "tokenizer_class": "TheirTokenizer",
            "auto_map": {"AutoTokenizer": [None, "theirs.TheirTokenizer"]},
        }
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
        with pytest.raises(InputError, match=f"^the tokenizer of '{folder}' {self.REFUSAL}"):
            Pretrained(str(folder)).tokenizer()
        assert not marker.exists()


class TestGradientCheckpointing:
    def gradients(self, kind, saved, **options):
        model = Pretrained(str(saved[kind]), **options).model()
        # The reentrant kind would give the first layer no gradient here.
        model.get_input_embeddings().requires_grad_(False)
        torch.manual_seed(0)
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        return model, {name: each.grad for name, each in model.named_parameters() if each.requires_grad}

    @pytest.mark.parametrize("kind", ["llama", "phi"])
    def test_gradients_are_equal_though_inputs_need_none(self, saved, kind):
        plain, expected = self.gradients(kind, saved)
        recomputed, got = self.gradients(kind, saved, gradient_checkpointing=True)
        assert recomputed.is_gradient_checkpointing
        assert not plain.is_gradient_checkpointing
        assert expected.keys() == got.keys()
        for name in expected:
            assert expected[name] is not None
            assert_close(got[name], expected[name], rtol=1e-5, atol=1e-7)

    def test_is_not_reentrant(self):
        model = from_config(CONFIGS["llama"], gradient_checkpointing=True).model()
        modules = [each for each in model.modules() if hasattr(each, "_gradient_checkpointing_func")]
        functions = [each._gradient_checkpointing_func for each in modules]
        assert functions
        assert all(each.keywords["use_reentrant"] is False for each in functions)
