"""GGUF files: weights as the package gguf dequantizes them, ordinary models from then on, errors in a line."""

import json
import re
import shutil
import struct
from pathlib import Path

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from gguf_files import CHAT_TEMPLATE, SCALES, dequantized, llama, write_gguf
from tiny_models import save_tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from dipo_pl.errors import InputError
from dipo_pl.models import gguf as gguf_module
from dipo_pl.models.gguf_path import local_gguf, weight_files
from dipo_pl.models.lora import LoRA
from dipo_pl.models.pretrained import Pretrained

IDS = torch.tensor([[0, 5, 9, 40, 80, 1]])
I32 = gguf.GGMLQuantizationType.I32


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A file in a folder of its own; not to be written to."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf")


def refused(path, message, what="model", **options) -> None:
    with pytest.raises(InputError, match=message) as raised:
        getattr(Pretrained(str(path), **options), what)()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_weights_are_those_that_gguf_dequantizes(kind, tmp_path):
    model = llama()
    source = Pretrained(str(write_gguf(tmp_path / "model.gguf", model, kind)))
    loaded = source.model()
    assert loaded.training
    assert (loaded.dtype, source.stored_dtype) == (torch.float32, torch.float32)
    found = loaded.state_dict()
    assert found.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert np.array_equal(found[name].numpy(), dequantized(weight, kind)), name


@pytest.mark.parametrize("kind", SCALES)
def test_k_quants_are_those_that_gguf_dequantizes(kind, tmp_path):
    model = llama(hidden_size=256, intermediate_size=256)
    loaded = Pretrained(str(write_gguf(tmp_path / "model.gguf", model, kind))).model().state_dict()
    for name, weight in model.state_dict().items():
        assert np.array_equal(loaded[name].numpy(), dequantized(weight, kind)), name
    assert loaded["lm_head.weight"].isfinite().all()


def test_a_model_of_another_order_of_heads_computes_the_same(tmp_path):
    """Not only rows in their order: what attention computes from them."""
    model = llama()
    loaded = Pretrained(str(write_gguf(tmp_path / "model.gguf", model, "F32"))).model().eval()
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_a_tied_head_stays_tied(tmp_path):
    loaded = Pretrained(str(write_gguf(tmp_path / "m.gguf", llama(tie_word_embeddings=True)))).model()
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


def test_it_is_saved_as_an_ordinary_folder(file, tmp_path):
    source = Pretrained(str(file))
    model, tokenizer = source.model().eval(), source.tokenizer()
    assert model.config.name_or_path == str(file)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert not {"quantization_config", "_model_name_or_path", "_name_or_path"} & config.keys()
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "Nonsense" not in json.dumps(config)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == CHAT_TEMPLATE


def test_the_tokenizer_is_the_files_without_tokens_that_transformers_adds(file):
    added = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert len(added) == 281, "transformers adds nothing: own_tokens can go"
    tokenizer, original = Pretrained(str(file)).tokenizer(), tiny_tokenizer()
    assert tokenizer.get_vocab() == original.get_vocab()
    assert tokenizer.special_tokens_map == original.special_tokens_map
    for text in ("She wrote the book.", "Où est-elle née ?</s> 1998", "<pad>"):
        assert tokenizer(text).input_ids == original(text).input_ids
        assert tokenizer.decode(original(text).input_ids) == original.decode(original(text).input_ids)
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_each_model_is_a_new_one_and_can_be_trained(file):
    source = Pretrained(str(file))
    first, second = source.model(), source.model()
    first(IDS, labels=IDS).loss.backward()
    assert all(each.grad is not None for each in first.parameters())
    with torch.no_grad():
        first.get_input_embeddings().weight.zero_()
    assert second.get_input_embeddings().weight.any()


def test_dtype_attention_and_adapters(file):
    model = Pretrained(str(file), dtype="bfloat16", attention="eager").model()
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    source = Pretrained(str(file), adapter=LoRA(rank=2))
    assert source.weights_dtype == "float32"
    assert {each.dtype for each in source.model().parameters()} == {torch.float32}
    assert Pretrained(str(file), dtype="bfloat16", adapter=LoRA()).weights_dtype == "bfloat16"


def test_the_configuration_is_read_without_the_weights(file):
    config = Pretrained(str(file)).configuration()
    assert (config.model_type, config.hidden_size, config.vocab_size) == ("llama", 64, 280)


def test_the_only_file_of_a_folder_is_taken_and_said(file, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("dipo_pl.models.pretrained.rank_zero_info", told.append)
    folder = shutil.copytree(file.parent, tmp_path / "folder")
    source = Pretrained(str(folder))
    source.model()
    assert told == [f"{folder} has no *.safetensors: its model is model.gguf"]
    assert source.source == str(folder / "model.gguf")
    Pretrained(str(folder), gguf_file="model.gguf").model()
    Pretrained(str(folder / "model.gguf")).model()
    assert len(told) == 1


def test_of_several_one_is_named(file, tmp_path):
    for name in ("b.gguf", "a.GGUF"):
        shutil.copy(file, tmp_path / name)
    several = (
        rf"^{tmp_path} holds 2 GGUF files \(a.GGUF, b.gguf\): give the path of one of them, or name it by "
    )
    for what in ("model", "tokenizer", "configuration"):
        refused(tmp_path, several, what)
    assert Pretrained(str(tmp_path), gguf_file="b.gguf").source == str(tmp_path / "b.gguf")
    message = rf"^model.policy.gguf_file: no file c.gguf in {tmp_path}: set it to a.GGUF, b.gguf$"
    refused(tmp_path, message, gguf_file="c.gguf")


def test_beside_safetensors_a_gguf_file_is_taken_only_if_it_is_named(file, tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    missing = rf"^model.policy.gguf_file: no file x.gguf in {folder}: there is no GGUF file in that folder: leave it out$"
    refused(folder, missing, gguf_file="x.gguf")
    shutil.copy(file, folder / "x.gguf")
    assert local_gguf(str(folder)) is None
    assert Pretrained(str(folder)).model().config.hidden_size == 16
    named = Pretrained(str(folder), gguf_file="x.gguf")
    assert named.model().config.hidden_size == 64
    assert named.configuration().hidden_size == 64


def test_the_files_of_weights(file, tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    assert weight_files(str(folder)) == [folder / "model.safetensors"]
    shutil.copy(file, folder / "x.gguf")
    assert weight_files(str(folder)) == [folder / "model.safetensors"]
    assert weight_files(str(folder), "x.gguf") == [folder / "x.gguf"]
    assert weight_files(str(file)) == weight_files(str(file.parent)) == [file]
    for path, name in (
        ("who/what", None),
        ("none.gguf", None),
        (str(folder), "y.gguf"),
        (str(tmp_path), None),
    ):
        assert weight_files(path, name) == []


def test_a_pickle_beside_a_gguf_file_is_left_alone(file, tmp_path):
    folder = shutil.copytree(file.parent, tmp_path / "folder")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert Pretrained(str(folder)).model().config.hidden_size == 64


@pytest.mark.parametrize("what", ["model", "tokenizer", "configuration"])
def test_a_path_that_is_none(file, tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    for path in ("model.gguf", "no/such/model.gguf"):
        refused(path, f"^no GGUF file {path}: give the path of one", what)
    refused(
        file,
        rf"^{file} is one file: leave model.policy.gguf_file out \(got b.gguf\)",
        what,
        gguf_file="b.gguf",
    )
    refused("no/such/folder", "^no model folder no/such/folder: ", what, gguf_file="b.gguf")


def test_a_file_on_the_hub_is_looked_for_in_the_local_cache(file, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("who/what", "^cannot load the file m.gguf of 'who/what': ", "tokenizer", gguf_file="m.gguf")
    repository = tmp_path / "models--who--what"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    (repository / "snapshots/abc").mkdir(parents=True)
    shutil.copy(file, repository / "snapshots/abc/m.gguf")
    (repository / "snapshots/abc/LICENSE").write_text("license")
    source = Pretrained("who/what", gguf_file="m.gguf")
    assert source.model().config.hidden_size == 64
    assert source.source == "who/what/m.gguf"
    (tmp_path / "target").mkdir()
    source.copy_companions(tmp_path / "target")
    assert [each.name for each in (tmp_path / "target").iterdir()] == ["LICENSE"]


def test_a_repository_of_gguf_files_needs_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(
        "who/what-GGUF",
        "; of a repository of GGUF files, name one by model.policy.gguf_file$",
        "configuration",
    )


@pytest.mark.parametrize("named", [None, "model.gguf"])
def test_only_licenses_are_copied_from_beside_it(file, tmp_path, named):
    folder = shutil.copytree(file.parent, tmp_path / "folder")
    for name in ("LICENSE", "NOTICE.txt", "vocab.json", "letter.txt", "config.json"):
        (folder / name).write_text(name)
    (tmp_path / "target").mkdir()
    Pretrained(str(folder), gguf_file=named).copy_companions(tmp_path / "target")
    assert {each.name for each in (tmp_path / "target").iterdir()} == {"LICENSE", "NOTICE.txt"}
    # Of a file, nothing says that what lies beside it belongs to it.
    (tmp_path / "other").mkdir()
    Pretrained(str(folder / "model.gguf")).copy_companions(tmp_path / "other")
    assert not any((tmp_path / "other").iterdir())


@pytest.mark.parametrize("absent", [("gguf",), ("gguf", "accelerate")])
def test_without_the_packages_their_command_is_given(file, monkeypatch, absent):
    monkeypatch.setattr(gguf_module, "find_spec", lambda name: None if name in absent else name)
    message = f"^{file} is a GGUF file, and reading it needs {' and '.join(absent)}: pip install 'dipo-pl\\[gguf\\]'$"
    for what in ("model", "tokenizer", "configuration"):
        refused(file, message, what)


def test_an_older_transformers_is_refused(file, monkeypatch):
    """It would make another tokenizer of the file, and say nothing."""
    monkeypatch.setattr(gguf_module.transformers, "__version__", "5.22.1")
    refused(file, "reading it needs transformers 5.23 or later: pip install 'dipo-pl", "tokenizer")


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_cut_file_is_refused_wherever_it_is_cut(file, tmp_path, share):
    content = file.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(content[: int(len(content) * share)])
    for what in ("model", "tokenizer", "configuration"):
        refused(cut, rf"^{cut} is cut or damaged \(.*\): copy or download it again$", what)


@pytest.mark.parametrize(("content", "begin"), [
    (b"", "b''"), (b"<html>", "b'<htm'"), (b"PK\x03\x04", "b'PK"), (b"lmgg" * 9, "b'lmgg'"),
])  # fmt: skip
def test_what_is_no_gguf_file(tmp_path, content, begin):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    refused(path, f"^{path} is not a GGUF file: it begins with {re.escape(begin)}")


def test_what_git_has_not_fetched(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    refused(path, f"^{path} is a pointer of Git LFS, not the file: fetch it with git lfs pull$")


def test_a_type_that_does_not_exist(file, tmp_path):
    name = b"blk.0.attn_q.weight"
    content = bytearray(file.read_bytes())
    # Name, number of dimensions, two dimensions, type.
    at = content.index(name) + len(name) + 4 + 16
    assert struct.unpack_from("<I", content, at) == (gguf.GGMLQuantizationType.Q8_0,)
    struct.pack_into("<I", content, at, 99)
    (tmp_path / "model.gguf").write_bytes(content)
    refused(
        tmp_path,
        "model.gguf holds weights of the type number 99, which the installed gguf cannot dequantize: give ",
    )


def test_a_type_that_cannot_be_dequantized(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", further={"numbers": (np.zeros(4, dtype=np.int32), I32)})
    refused(
        path, "m.gguf holds weights of the type I32, which the installed gguf cannot dequantize: give another"
    )


def test_what_is_not_a_whole_language_model(tmp_path):
    refused(write_gguf(tmp_path / "a.gguf", parts=3), "a.gguf is one of 3 parts of a model: merge them first")
    lacking = write_gguf(tmp_path / "b.gguf", leave_out="blk.1.ffn_up.weight")
    message = (
        r"b.gguf' lacks 1 weights of LlamaForCausalLM \(model.layers.1.mlp.up_proj.weight\): give a complete"
    )
    refused(lacking, message)
    writer = gguf.GGUFWriter(tmp_path / "c.gguf", "clip")
    writer.add_tensor("a", np.zeros(32, dtype=np.float32))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    refused(tmp_path / "c.gguf", "c.gguf holds no tokenizer: give the GGUF file of a whole language model")
    strange = tmp_path / "d.gguf"
    strange.write_bytes(write_gguf(tmp_path / "e.gguf").read_bytes().replace(b"llama", b"lemma"))
    refused(
        strange,
        "^cannot load the configuration of '.*d.gguf': GGUF model with architecture lemma is not supported",
        "configuration",
    )


def test_weights_that_transformers_leaves_out_are_told(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(gguf_module, "rank_zero_warn", told.append)
    frequencies = np.ones(8, dtype=np.float32), gguf.GGMLQuantizationType.F32
    Pretrained(str(write_gguf(tmp_path / "a.gguf"))).model()
    assert told == []
    path = write_gguf(tmp_path / "b.gguf", further={"rope_freqs.weight": frequencies})
    Pretrained(str(path)).model()
    (line,) = told
    assert line.startswith(
        f"{path} holds 8 more weights than transformers reads into LlamaForCausalLM, such as"
    )
