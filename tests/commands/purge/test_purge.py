"""`dipo-pl purge` on a finished run: the words of its forget set are gone, and its figures stay."""

import json
import shutil
import sys

import pytest

from dipo_pl.commands import purge as purging
from dipo_pl.commands.purge import Purge
from dipo_pl.errors import InputError
from dipo_pl.storage.files import locked
from dipo_pl.storage.run_folder import RunFolder


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
        Purge.of(RunFolder(run)).run_now()
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


def test_the_target_is_removed_if_asked(run, target, cli, manifest):
    ended = cli("purge", run, "--yes")
    assert (
        f"  {target / 'hf'}: the model that the run started from, which knows the rows (--target)"
        in ended.out
    )
    assert (target / "hf").is_dir()
    ended = cli("purge", run, "--yes", "--target")
    assert ended.code == 0, ended.err
    assert not (target / "hf").exists()
    assert not (target / "checkpoints").exists()
    assert (target / "metrics.jsonl").is_file()
    assert manifest(target)["purged"]["removed"] == ["checkpoints", "hf"]
    assert "hf" not in manifest(run)["purged"]["removed"]
    # The target's own evaluations are named, with the command that removes their texts.
    left = f"  {target}: texts of its evaluations, TensorBoard's samples: dipo-pl purge {target}"
    lines = ended.out.splitlines()
    assert lines[lines.index("still holds the rows:") + 1] == left
    ended = cli("purge", target, "--yes")
    assert ended.code == 0, ended.err
    assert not [line for line in ended.out.splitlines() if line.startswith(f"  {target / 'hf'}")]
    assert ended.out.splitlines()[-1] == f"done: {target} holds figures"
    assert "still holds the rows:" not in cli("purge", run, "--yes", "--target").out


def with_policy(**changes):
    return lambda content: content | {"policy": content["policy"] | changes}


def without_export(content):
    return content | {"exported_weights": None}


@pytest.mark.parametrize(("of_run", "of_target", "line"), [
    (None, lambda content: content | {"status": "running"}, "is not finished (status: running)"),
    (None, lambda content: content | {"exported_weights": "others"}, "is not the model that"),
    # A target of an earlier version, of which only the last weights are known.
    (None, lambda content: without_export(with_policy(weights_at_end="others")(content)), "is not the model that"),
    (None, lambda content: without_export(with_policy(weights_at_end=None)(content)), "target/manifest.json does not"),
    (with_policy(weights_at_start=None), None, "smoke/manifest.json does not record what would show that"),
    (with_policy(weights_at_start="others"), None, "is not the model that"),
    # Of LoRA only the adapter's weights are recorded: the target must have ended before.
    (with_policy(frozen_weights="a", weights_at_start="b"), lambda content: content | {"ended": "9999"}, "is not the model"),
    (with_policy(frozen_weights="a", weights_at_start="b"), lambda content: content | {"ended": None}, "does not record"),
    (lambda content: content | {"probe": {"kind": "relearning"}}, None, "has no exported model of its own"),
])  # fmt: skip
def test_another_model_at_the_targets_path_stays(run, target, cli, manifest, of_run, of_target, line):
    for folder, change in ((run, of_run), (target, of_target)):
        if change is not None:
            manifest(folder, **change(manifest(folder)))
    ended = cli("purge", run, "--yes", "--target")
    assert (ended.code, len(ended.errors)) == (2, 1)
    assert line in ended.errors[0]
    assert (target / "hf" / "model.safetensors").is_file()
    assert (run / "checkpoints").exists()


def test_the_target_of_frozen_weights_is_compared_by_time(run, target, cli, manifest):
    frozen = with_policy(frozen_weights="a", weights_at_start="b")(manifest(run))
    manifest(run, **frozen | {"started": "2026-01-02"})
    manifest(target, ended="2026-01-01")
    assert cli("purge", run, "--yes", "--target").code == 0
    assert not (target / "hf").exists()


def test_the_exported_weights_are_compared_and_not_the_last_ones(run, target, cli, manifest):
    """The target chose an earlier step, or rounded its weights: no run starts from its last ones."""
    manifest(target, **with_policy(weights_at_end="last", frozen_weights="base")(manifest(target)))
    assert cli("purge", run, "--yes", "--target").code == 0
    assert not (target / "hf").exists()


@pytest.mark.parametrize("used", ["run", "target"])
def test_a_folder_in_use_is_left_alone(run, target, cli, used):
    with locked(run.with_name("smoke" if used == "run" else used)):
        ended = cli("purge", run, "--yes", "--target")
    assert (ended.code, ended.out) == (2, "")
    assert "is used by another process" in ended.errors[0]
    assert (target / "hf").exists()
    assert (run / "checkpoints").exists()


def test_the_list_is_made_inside_of_the_lock(run, target, cli, monkeypatch):
    tried = []

    def of(folder, started_from):
        for each in (folder, started_from):
            with pytest.raises(InputError, match="used by another process"), locked(each.path):
                pass
            tried.append(each.path)
        return made(folder, started_from)

    made = Purge.of
    monkeypatch.setattr(Purge, "of", of)
    assert cli("purge", run, "--yes", "--target").code == 0
    assert tried == [run, target]


@pytest.mark.parametrize("gone", ["model.safetensors", "config.json", "."])
def test_weights_that_are_only_in_checkpoints_stay(run, cli, gone):
    path = run / "hf" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    ended = cli("purge", run, "--yes")
    assert (ended.code, len(ended.errors), ended.out) == (2, 1, "")
    line = f"{run / 'hf'} has no exported model: the weights are only in {run / 'checkpoints'}"
    assert line in ended.errors[0]
    assert (run / "checkpoints" / "last.ckpt").exists()
    assert "question" in forget_rows(run)[0]


def test_a_probes_weights_are_not_kept(run, cli, manifest):
    manifest(run, probe={"kind": "relearning"})
    shutil.rmtree(run / "hf")
    ended = cli("purge", run, "--yes")
    assert ended.code == 0, ended.err
    assert not (run / "checkpoints").exists()
    assert f"{run / 'hf'}:" not in ended.out


def test_an_adapter_is_a_model_that_needs_its_base(run, target, cli):
    (run / "hf" / "config.json").rename(run / "hf" / "adapter_config.json")
    ended = cli("purge", run, "--yes", "--target")
    assert (ended.code, len(ended.errors)) == (2, 1)
    assert f"{run / 'hf'} holds an adapter, which needs {target / 'hf'} as its base" in ended.errors[0]
    assert (target / "hf").is_dir()
    assert cli("purge", run, "--yes").code == 0
    assert not (run / "checkpoints").exists()


def test_a_run_is_purged_from_inside(run, cli, monkeypatch):
    monkeypatch.chdir(run)
    ended = cli("purge", ".", "--yes")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0] == f"removes from {run}:"
    assert any(line.startswith(f"  {run}-relearn: a relearning probe") for line in lines)
    assert not (run / "checkpoints").exists()


def test_a_name_is_no_pattern(run, cli):
    odd = run.rename(run.with_name("smoke[12]"))
    ours, other = (run.with_name(f"{name}-relearn") for name in ("smoke[12]", "smoke1"))
    for each in (ours, other):
        shutil.copytree(run.with_name("smoke-relearn"), each)
    lines = cli("purge", odd, "--yes").out
    assert f"  {ours}: a relearning probe" in lines
    assert str(other) not in lines


def test_a_damaged_config_is_named(run, cli):
    (run / "config.yaml").write_text("model: {")
    ended = cli("purge", run, "--yes")
    assert (ended.code, len(ended.errors)) == (2, 1)
    assert f"cannot read {run / 'config.yaml'}" in ended.errors[0]
    assert (run / "checkpoints").exists()


@pytest.mark.parametrize(
    "name", ["checkpoints", "checkpoints/last.ckpt", "evaluation", "evaluation/*.json", "error.log"]
)
def test_links_are_refused_by_name(run, cli, tmp_path, name):
    path = sorted(run.glob(name))[0]
    elsewhere = path.rename(tmp_path / "elsewhere")
    path.symlink_to(elsewhere)
    ended = cli("purge", run, "--yes")
    assert (ended.code, len(ended.errors), ended.out) == (2, 1, "")
    assert f"{path} is a symbolic link to {elsewhere}" in ended.errors[0]
    assert "question" in forget_rows(run)[0]
    assert elsewhere.exists()


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


@pytest.mark.parametrize("signed", ["smoke", "target"])
def test_what_is_signed_stays(run, target, cli, signed):
    folder = run.with_name(signed)
    (folder / "signature.json").write_text("{}")
    ended = cli("purge", run, "--yes", "--target")
    assert (ended.code, len(ended.errors), ended.out) == (2, 1, "")
    assert (
        f"{folder} is signed, and this would change it: remove {folder / 'signature.json'}" in ended.errors[0]
    )
    assert (run / "checkpoints").exists()
    assert (target / "hf").exists()


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
