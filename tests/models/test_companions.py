"""Files of a model folder that belong to a model trained from it."""

from pathlib import Path

import huggingface_hub.constants
import pytest
from tiny_models import save_tiny_model

from dipo_pl.models.companions import LARGEST, companions, model_folder
from dipo_pl.models.pretrained import Pretrained

KEPT = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "chat_template.json",
    "vocab.json", "merges.txt", "LICENSE", "NOTICE.txt", "USE_POLICY.md", "additional_chat_templates/tools.jinja",
    "video_preprocessor_config.json",
)  # fmt: skip
LEFT = (
    "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "x.pt",
    "optimizer.pt", "README.md", ".gitattributes", "original/consolidated.00.pth", "original/params.json",
    "checkpoint-5/model.safetensors", "checkpoint-5/config.json", "model.gguf", "onnx/model.onnx_data", "manifest.json",
    "adapter_config.json", "trainer_state.json", ".cache/x.json", "__pycache__/x.pyc",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for name in (*KEPT, *LEFT, "modeling_own.py"):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "source"


def test_all_but_weights_code_and_other_models(folder):
    assert {str(each) for each in companions(folder)} == {*KEPT}
    assert {str(each) for each in companions(folder, code=True)} == {*KEPT, "modeling_own.py"}


def test_a_large_file_counts_as_weights(folder):
    with (folder / "unknown.format").open("wb") as file:
        file.truncate(LARGEST)
    assert Path("unknown.format") in companions(folder)
    with (folder / "unknown.format").open("ab") as file:
        file.write(b"x")
    assert Path("unknown.format") not in companions(folder)


@pytest.mark.parametrize("trusted", [False, True])
def test_what_the_target_lacks_is_copied(folder, tmp_path, trusted):
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_text("new")
    Pretrained(str(folder), trust_remote_code=trusted).copy_companions(target)
    found = {str(each.relative_to(target)) for each in target.rglob("*") if each.is_file()}
    assert found == {*KEPT} | ({"modeling_own.py"} if trusted else set())
    assert (target / "config.json").read_text() == "new"
    assert (target / "LICENSE").read_text() == "LICENSE"


def test_files_of_another_tokenizer_are_not(folder, tmp_path):
    (tmp_path / "target").mkdir()
    Pretrained(str(folder), tokenizer="other").copy_companions(tmp_path / "target")
    assert not (tmp_path / "target" / "vocab.json").exists()
    assert (tmp_path / "target" / "LICENSE").exists()


def test_a_hub_id_is_looked_for_in_the_local_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert model_folder("who/what") is None
    Pretrained("who/what").copy_companions(tmp_path)
    repository = tmp_path / "models--who--what"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    snapshot = save_tiny_model(repository / "snapshots/abc")
    assert model_folder("who/what") == snapshot
    assert model_folder(str(snapshot)) == Path(snapshot)
