"""A model in a GGUF file through the commands: trained, exported, probed, planned; bad files in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from gguf_files import CHAT_TEMPLATE, llama, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from dipo_pl.commands.audit.models import identity_of
from dipo_pl.models.pretrained import Pretrained

QUICK = ("--trainer.max_epochs", "1", "--forget_quality.generate_every", "0", "--samples.rows", "0")
POLICY = ("--config", "smoke.yaml", "--data.max_length", "512", *QUICK, "--model.policy", "Pretrained")


def words(path: str | Path, *further: str) -> tuple[str, ...]:
    return (*POLICY, "--model.policy.path", str(path), *further)


@pytest.fixture
def file(tmp_path) -> Path:
    return write_gguf(tmp_path / "model" / "tiny.gguf")


def test_a_run_on_a_file_exports_an_ordinary_folder(cli, file, manifest, metrics):
    (file.parent / "LICENSE").write_text("license")
    ended = cli("fit", *words("model", "--name", "run", "--data.prompt", "ChatTemplate"))
    assert ended.code == 0, ended.err
    run = Path("runs/run")
    assert "model has no *.safetensors: its model is tiny.gguf" in ended.err + ended.out
    assert manifest(run)["policy"]["source"] == "model/tiny.gguf"
    assert manifest(run)["policy"]["dtype"] == "torch.float32"
    assert {each.name for each in (run / "hf").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "LICENSE", "README.md",
    }  # fmt: skip
    card = (run / "hf" / "README.md").read_text()
    assert "`tiny.gguf`, a local GGUF file" in card
    assert "base_model" not in card
    # By transformers alone: what was trained, which is no longer what was in the file.
    model = AutoModelForCausalLM.from_pretrained(run / "hf")
    trained = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    trained = {name.removeprefix("model."): each for name, each in trained.items()}
    expected = llama().eval()
    expected.load_state_dict(trained)
    ids = torch.tensor([[0, 5, 9, 40, 80, 1]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected(ids).logits)
        assert not torch.equal(model(ids).logits, Pretrained(str(file)).model().eval()(ids).logits)
    assert AutoTokenizer.from_pretrained(run / "hf").chat_template == CHAT_TEMPLATE
    # And by this project, without a sign of the file.
    again = cli("validate", *words("runs/run/hf", "--name", "again", "--data.prompt", "ChatTemplate"))
    assert again.code == 0, again.err
    last, measured = metrics(run)[-1], metrics(Path("runs/again"))[-1]
    assert measured["forget_probability"] == last["forget_probability"]
    assert measured["retain_probability"] == last["retain_probability"]


def test_adapters_on_a_file_are_merged_into_an_ordinary_folder(cli, file):
    ended = cli("fit", *words(file, "--config", "lora.yaml", "--name", "run"))
    assert ended.code == 0, ended.err
    start, exported = Pretrained(str(file)).model(), AutoModelForCausalLM.from_pretrained("runs/run/hf")
    same = {name: torch.equal(each, exported.state_dict()[name]) for name, each in start.state_dict().items()}
    assert same["model.embed_tokens.weight"]
    assert not same["model.layers.0.self_attn.q_proj.weight"]


def test_an_evaluated_file_can_be_probed(cli, file, manifest):
    """The run has no exported model: probes load the file again, by its name."""
    shutil.copy(file, file.with_name("other.gguf"))
    ended = cli("validate", *words("model", "--model.policy.gguf_file", "tiny.gguf", "--name", "run"))
    assert ended.code == 0, ended.err
    ended = cli("quantize", "runs/run", "--bits", "8", "--forget_quality.generate_every", "0")
    assert ended.code == 0, ended.err
    assert manifest(Path("runs/run-int8"))["policy"]["source"] == "model/tiny.gguf"


def test_a_plan_is_that_of_the_dequantized_model(cli, file):
    source = Pretrained(str(file))
    source.model().save_pretrained("saved")
    source.tokenizer().save_pretrained("saved")
    plans = []
    for path in (file, "saved"):
        ended = cli("plan", "--json", *words(path))
        assert ended.code == 0, ended.err
        plans.append(json.loads(ended.out))
    assert plans[0]["bytes"] == plans[1]["bytes"]
    assert plans[0]["run"] == plans[1]["run"]


def test_task_arithmetic_says_how_to_make_a_folder(cli, file):
    for given in ("model", "model/tiny.gguf"):
        ended = cli("interpolate", given, "model", "--weight", "0.5", "--output", "made")
        assert ended.code == 2
        (line,) = ended.errors
        assert line.endswith("model/tiny.gguf is a GGUF file: make a folder of it first "
                             "(dipo-pl pretrained model/tiny.gguf --output FOLDER)")  # fmt: skip
    assert not Path("made").exists()


def test_an_audit_tells_a_changed_file(file, tmp_path, monkeypatch):
    """Its attacks are tried again then."""
    monkeypatch.chdir(tmp_path)
    source = Pretrained("model", gguf_file="tiny.gguf")
    before = identity_of(source)
    shutil.copy(file, file.with_name("other.gguf"))
    assert identity_of(source) == before
    write_gguf(file, kind="Q4_0")
    assert identity_of(source) != before


BAD = {
    "none.gguf": "no GGUF file none.gguf: give the path of one, or a folder that holds one",
    "cut.gguf": "cut.gguf is cut or damaged (",
    "text.gguf": "text.gguf is not a GGUF file: it begins with b'hell', not with b'GGUF'",
    "two": "two holds 2 GGUF files (cut.gguf, text.gguf): give the path of one of them, or name it by",
}


@pytest.mark.parametrize("command", ["fit", "validate", "plan"])
@pytest.mark.parametrize(("path", "line"), BAD.items(), ids=BAD)
def test_a_bad_path_is_one_line_and_leaves_nothing(cli, file, command, path, line):
    Path("cut.gguf").write_bytes(file.read_bytes()[:-1000])
    Path("text.gguf").write_text("hello")
    Path("two").mkdir()
    for name in ("cut.gguf", "text.gguf"):
        shutil.copy(name, "two")
    ended = cli(command, *words(path))
    assert ended.code == 2
    assert len(ended.err.strip().splitlines()) == 1
    assert line in ended.errors[0]
    assert not Path("runs").exists()
