"""`dipo-pl purge` on a finished run: the words of its forget set are gone, and its figures stay."""

import json
import shutil
import sys

import pytest

from dipo_pl.commands import purge as purging
from dipo_pl.commands.purge import Purge


@pytest.fixture
def run(tmp_path, smoke):
    """A copy of a finished run, with what a longer one has beside."""
    copy = tmp_path / "runs" / "smoke"
    shutil.copytree(smoke, copy)
    (copy / "reference").mkdir()
    (copy / "reference" / "states.safetensors").write_bytes(b"Mira Holloway")
    (copy / "error.log").write_text("a row")
    probe = tmp_path / "runs" / "smoke-relearn"
    probe.mkdir()
    (probe / "manifest.json").write_text(json.dumps({"probe": {"kind": "relearning", "of": "runs/smoke"}}))
    return copy


def forget_rows(run):
    last = sorted((run / "evaluation").iterdir())[-1]
    return json.loads(last.read_text())["sets"]["forget"]["rows"]


def test_words_go_and_figures_stay(run, cli, manifest):
    before = {path.name: json.loads(path.read_text()) for path in (run / "evaluation").iterdir()}
    words = {
        word
        for row in forget_rows(run)
        for text in (row["question"], *row["answers"])
        for word in text.split()
    }
    # Of them, those of the file of figures itself, such as `of`, say nothing.
    telling = {word.strip(".,?'s") for word in words if word[0].isupper() and len(word) > 4}
    assert len(telling) > 5
    reported = cli("report", run).out
    ended = cli("purge", run, "--yes")
    assert ended.code == 0, ended.err
    for path in run.rglob("*"):
        # The model keeps its tokenizer, which was trained on the texts.
        if path.is_file() and "hf" not in path.relative_to(run).parts:
            content = path.read_bytes()
            assert not [word for word in telling if word.encode() in content], path
    for name in ("checkpoints", "reference", "error.log"):
        assert not (run / name).exists()
    assert not list(run.glob("events*"))
    assert (run / "hf" / "model.safetensors").is_file()
    for name, content in before.items():
        after = json.loads((run / "evaluation" / name).read_text())
        for key, each in content["sets"].items():
            for row in each["rows"]:
                for text in ("question", "answers", "generation"):
                    row.pop(text, None)
            assert after["sets"][key] == each
        assert after["metrics"] == content["metrics"]
    again = cli("report", run)
    assert again.code == 0, again.err
    assert again.out == reported
    purged = manifest(run)["purged"]
    assert purged["removed"] == sorted(
        [
            "evaluation texts",
            "checkpoints",
            "reference",
            "error.log",
            *[each for each in purged["removed"] if "tfevents" in each],
        ]
    )
    lines = ended.out.splitlines()
    assert f"removes from {run}:" in lines
    assert any("smoke-relearn: a relearning probe" in line for line in lines)


def test_a_second_purge_finds_nothing(run, cli, manifest):
    assert cli("purge", run, "--yes").code == 0
    before = manifest(run)["purged"]["removed"]
    ended = cli("purge", run, "--yes")
    assert ended.code == 0
    assert "  nothing: it holds no such files" in ended.out.splitlines()
    assert manifest(run)["purged"]["removed"] == before


def test_a_killed_purge_is_gone_on_with(run, cli, monkeypatch):
    monkeypatch.setattr(purging, "remove", None)
    with pytest.raises(TypeError):
        Purge.of(str(run), False).run_now()
    monkeypatch.undo()
    assert "question" not in forget_rows(run)[0]
    assert (run / "checkpoints").exists()
    assert cli("purge", run, "--yes").code == 0
    assert not (run / "checkpoints").exists()


def test_nothing_is_removed_without_a_yes(run, cli, monkeypatch):
    def files():
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before = files()
    ended = cli("purge", run)
    assert (ended.code, len(ended.errors)) == (2, 1)
    assert "nothing is removed without a yes" in ended.errors[0]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer in ("n", "", "no"):
        monkeypatch.setattr("builtins.input", lambda prompt, answer=answer: answer)
        ended = cli("purge", run)
        assert ended.code == 1
        assert "nothing was removed" in ended.out
        assert files() == before
    monkeypatch.setattr("builtins.input", lambda prompt: "yes")
    assert cli("purge", run).code == 0
    assert not (run / "checkpoints").exists()


def test_the_target_is_removed_if_asked(run, cli, manifest, smoke):
    target = run.with_name("target")
    shutil.copytree(smoke, target)
    policy = manifest(run)["policy"] | {"source": str(target / "hf")}
    manifest(run, policy=policy)
    ended = cli("purge", run, "--yes")
    assert (
        f"  {target / 'hf'}: the model that the run started from, which knows the rows (--target)"
        in ended.out
    )
    assert (target / "hf").is_dir()
    assert cli("purge", run, "--yes", "--target").code == 0
    assert not (target / "hf").exists()
    assert not (target / "checkpoints").exists()
    assert (target / "metrics.jsonl").is_file()


@pytest.mark.parametrize(("change", "words", "line"), [
    ({"status": "running"}, (), "is not finished (status: running)"),
    ({"policy": {"source": "my-org/my-model"}}, ("--target",), "--target: my-org/my-model is not the exported model"),
])  # fmt: skip
def test_what_cannot_be_purged(run, cli, manifest, change, words, line):
    manifest(run, **change)
    ended = cli("purge", run, "--yes", *words)
    assert (ended.code, len(ended.errors)) == (2, 1)
    assert line in ended.errors[0]
    assert (run / "checkpoints").exists()


def test_its_own_model_is_not_its_target(run, cli, manifest):
    manifest(run, policy={"source": str(run / "hf")})
    ended = cli("purge", run, "--yes", "--target")
    assert "started from its own model" in ended.errors[0]
    assert (run / "hf").is_dir()


def test_damaged_evaluations_are_named(run, cli):
    path = sorted((run / "evaluation").iterdir())[0]
    path.write_text("{")
    ended = cli("purge", run, "--yes")
    assert f"{path} is not an evaluation" in ended.errors[0]
    assert (run / "checkpoints").exists()


def test_other_folders_are_refused(cli, tmp_path):
    ended = cli("purge", tmp_path, "--yes")
    assert "is not a run folder" in ended.errors[0]
