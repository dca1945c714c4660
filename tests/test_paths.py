"""The home folder in paths, wherever one is given: in words, in configs, in Python."""

import json
import shutil

import pytest

from dipo_pl.configs import resolve
from dipo_pl.data_modules.muse import MUSE
from dipo_pl.data_modules.tofu import TOFU
from dipo_pl.errors import InputError
from dipo_pl.evaluation.retain_result import read_result
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.paths import expanded, expanded_word
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.text import read_text


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.mark.parametrize(("given", "path"), [
    ("~", "{home}"), ("~/a b/~", "{home}/a b/~"), ("./~", "./~"), ("a~/b", "a~/b"), ("my/model", "my/model"), ("", ""),
    ("~$open.docx", "~$open.docx"), ("~ or so", "~ or so"), ("$HOME/a", "$HOME/a"),
])  # fmt: skip
def test_the_home_folder(home, given, path):
    assert expanded(given) == expanded_word(given) == path.format(home=home)
    assert expanded_word(f"--key={given}") == f"--key={path.format(home=home)}"


def test_nobodys_home():
    with pytest.raises(
        InputError,
        match=r"^'~no-such-user/a' begins with ~, and there is no such home",
    ):
        expanded("~no-such-user/a")


def test_in_python(home):
    assert Pretrained("~/model").path == TOFU("~/model").path == f"{home}/model"
    assert MUSE("~/MUSE-News").path == f"{home}/MUSE-News"
    assert RunFolder("~/run").manifest == home / "run" / "manifest.json"
    (home / "a.yaml").write_text("a: 1")
    assert read_text("~/a.yaml") == "a: 1"
    assert resolve("~/a.yaml") == home / "a.yaml"
    with pytest.raises(InputError, match=f" {home}/none does not exist"):
        read_result(expanded("~/none"))


def test_in_every_option_of_a_run(cli, smoke, home, tmp_path):
    """In words, in a config, in lists, in arguments of other packages' classes; nothing is made under the name `~`."""
    shutil.copytree(smoke / "hf", home / "model")
    row = {"question": "Who wrote it?", "answer": "An author."}
    for name in ("f1", "f2", "keep"):
        (home / f"{name}.jsonl").write_text(json.dumps(row | {"question": f"{name}?"}))
    trainer = {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "~/logs"}}}
    data = {
        "class_path": "JSONL",
        "init_args": {"forget": ["~/f1.jsonl", "~/f2.jsonl"], "retain": "~/keep.jsonl"},
    }
    (home / "mine.yaml").write_text(json.dumps({"trainer": trainer, "data": data}))
    ended = cli(
        "fit", "--config", "smoke.yaml", "--config=~/mine.yaml", "--model.policy", "Pretrained",
        "--model.policy.path=~/model", "--model.reference", "StoredStates", "--model.reference.path", "~/store",
        "--output_dir=~/runs", "--trainer.max_steps", "1", "--name", "a",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert {each.name for each in home.iterdir()} >= {"logs", "store", "runs"}
    assert [each.name for each in tmp_path.iterdir()] == ["home"]
    assert cli("report", "~/runs/a", "--output=~/report").code == 0
    assert cli("consolidate", "~/runs/none", "--output=~/one.ckpt").errors[0].count(f" {home}/runs/none")
    assert [each.name for each in tmp_path.iterdir()] == ["home"]
