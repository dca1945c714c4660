"""Pretrained models: saved weights as they were, nothing run or unpickled from outside, errors in a line."""

import json
import os
import re
import shutil

import pytest
import torch
import transformers
from tiny_models import TEXTS, save_tiny_model, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer

from dipo_pl.errors import InputError
from dipo_pl.models.adapters import save_adapter
from dipo_pl.models.lora import LoRA
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.models.tokenizer import train_tokenizer

# AutoTokenizer adds a token of its own for qwen2 and gemma2.
ARCHITECTURES = ("llama", "gpt2", "phi")
IDS = torch.tensor([[0, 5, 9, 40, 80, 1]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of each architecture with a model and its tokenizer; not to be written to."""
    return {kind: str(save_tiny_model(tmp_path_factory.mktemp(kind), kind)) for kind in ARCHITECTURES}


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the llama folder, to be damaged."""
    return shutil.copytree(saved["llama"], tmp_path / "model")


def change_json(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(folder, message, what="model"):
    with pytest.raises(InputError, match=message) as raised:
        getattr(Pretrained(str(folder)), what)()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_saved_model_is_what_it_was(saved, kind):
    source = Pretrained(saved[kind])
    model = source.model()
    assert model.training
    with torch.no_grad():
        assert torch.equal(model.eval()(IDS).logits, tiny_model(kind, vocab_size=280)(IDS).logits)
    assert source.tokenizer()("She wrote").input_ids == tiny_tokenizer()("She wrote").input_ids
    assert source.source == saved[kind]


def test_a_model_without_a_tokenizer_takes_that_of_another_folder(saved, folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    refused(folder, f"^no tokenizer in the folder {folder}: put its tokenizer.json")
    source = Pretrained(str(folder), tokenizer=saved["gpt2"])
    assert source.tokenizer().get_vocab() == tiny_tokenizer().get_vocab()
    assert type(source.model()).__name__ == "LlamaForCausalLM"


def test_each_model_is_a_new_one(saved):
    source = Pretrained(saved["llama"])
    first, second = source.model(), source.model()
    with torch.no_grad():
        first.get_input_embeddings().weight.zero_()
    assert second.get_input_embeddings().weight.any()


def test_dtype_and_attention_kernel(saved):
    model = Pretrained(saved["llama"], dtype="bfloat16", attention="eager").model()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    model = Pretrained(saved["llama"]).model()
    assert (model.dtype, model.config._attn_implementation) == (torch.float32, "sdpa")


@pytest.mark.parametrize(("revision", "asked"), [(None, "main"), ("v2", "v2")])
def test_what_transformers_is_asked_for(monkeypatch, revision, asked):
    """Also out of reach of the hub: its message becomes one line."""
    seen = {}

    def remember(name):
        def from_pretrained(path, **options):
            seen[name] = path, options
            raise OSError("We couldn't connect to\n  the hub.\nCheck your connection.")

        return from_pretrained

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", remember("tokenizer"))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", remember("model"))
    source = Pretrained("who/what", revision=revision)
    for name, load in (("tokenizer", source.tokenizer), ("model", lambda: source._load_model(None))):
        with pytest.raises(InputError) as raised:
            load()
        message = (
            f"cannot load the {name} of 'who/what': We couldn't connect to the hub. Check your connection."
        )
        assert str(raised.value) == message
    common = {"revision": asked, "trust_remote_code": False}
    assert seen["tokenizer"] == ("who/what", common)
    options = {
        "dtype": "float32", "use_safetensors": True, "output_loading_info": True, "attn_implementation": None,
    }  # fmt: skip
    assert seen["model"] == ("who/what", common | options)


@pytest.mark.parametrize("path", ["/no/such/folder", "./folder", "../folder", "~/folder", "runs/target/hf"])
@pytest.mark.parametrize("what", ["tokenizer", "model", "configuration"])
def test_a_missing_folder_is_refused(monkeypatch, tmp_path, path, what):
    monkeypatch.chdir(tmp_path)
    refused(path, rf"^no model folder {re.escape(os.path.expanduser(path))}: give a folder with ", what)


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without_offsets(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    ByT5Tokenizer().save_pretrained(folder)


def not_fetched(name):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
    return lambda folder: (folder / name).write_text(pointer)


DAMAGES = {
    "weights that Git has not fetched": (
        not_fetched("model.safetensors"), "{}/model.safetensors is a pointer of Git LFS, .*: fetch it with git lfs pull$"
    ),
    "a tokenizer that Git has not fetched": (
        not_fetched("tokenizer.json"), "{}/tokenizer.json is a pointer of Git LFS"
    ),
    "config": (lambda folder: (folder / "config.json").unlink(), "cannot load the model of '{}': .*config.json"),
    "tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot load the tokenizer of '{}': "),
    "cut": (cut, "cannot load the model of '{}': "),
    "fewer weights": (
        lambda folder: change_json(folder / "config.json", num_hidden_layers=3),
        r"the checkpoint of '{}' lacks 9 weights of LlamaForCausalLM \(model.layers.2.input_layernorm.weight, .*, "
        r"\.\.\.\): give a complete causal language model$",
    ),
    "shape": (
        lambda folder: change_json(folder / "config.json", intermediate_size=48), "cannot load the model of '{}': "
    ),
    "larger tokenizer": (
        lambda folder: train_tokenizer(TEXTS, 281).save_pretrained(folder),
        "the tokenizer of {} has 281 tokens and the model embeds 280: they do not belong together",
    ),
    "no offsets": (without_offsets, "the tokenizer of {} gives no character offsets, .*: use its fast version"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_refused(folder, damage, message):
    damage(folder)
    refused(folder, f"^{message.format(folder)}")


def test_a_vocabulary_that_is_padded_beyond_the_tokenizer_is_usual(folder):
    train_tokenizer(TEXTS, 270).save_pretrained(folder)
    assert Pretrained(str(folder)).model().config.vocab_size == 280


def test_a_pickle_is_not_opened(folder, monkeypatch):
    model = Pretrained(str(folder)).model()
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    refused(folder, rf"^{folder} has no \*.safetensors, only pytorch_model.bin, a pickle, which can run code")


def test_an_adapter_alone_is_refused(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    LoRA(rank=3).apply(model)
    (folder / "model.safetensors").unlink()
    save_adapter(model, model.state_dict(), folder)
    refused(folder, f"^{folder} holds an adapter, not a complete model: give its base model")


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
def marked(folder, tmp_path, monkeypatch):
    """A folder with Python code of its own, and the file that this code makes when it runs."""
    marker = tmp_path / "ran"
    (folder / "theirs.py").write_text(MODEL.format(marker=str(marker)))
    classes = {"AutoConfig": "theirs.TheirConfig", "AutoModelForCausalLM": "theirs.TheirModel"}
    change_json(folder / "config.json", model_type="theirs", auto_map=classes)
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder, marker


def test_foreign_code_of_a_model_runs_only_where_it_is_allowed(marked):
    folder, marker = marked
    refused(folder, f"^the model of '{folder}' {REFUSAL}")
    assert not marker.exists()
    assert type(Pretrained(str(folder), trust_remote_code=True).model()).__name__ == "TheirModel"
    assert marker.exists()


def test_a_known_architecture_is_loaded_without_its_foreign_code(marked):
    folder, marker = marked
    change_json(folder / "config.json", model_type="llama")
    assert type(Pretrained(str(folder)).model()).__name__ == "LlamaForCausalLM"
    assert not marker.exists()


def test_foreign_code_of_a_tokenizer_is_refused(marked):
    folder, marker = marked
    change_json(folder / "config.json", model_type="llama")
    classes = {"AutoTokenizer": [None, "theirs.TheirTokenizer"]}
    change_json(folder / "tokenizer_config.json", tokenizer_class="TheirTokenizer", auto_map=classes)
    refused(folder, f"^the tokenizer of '{folder}' {REFUSAL}", "tokenizer")
    assert not marker.exists()
