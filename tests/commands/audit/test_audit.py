"""`dipo-pl audit` on finished runs whose models are tiny and random."""

import json
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from audit_runs import NAMES, TOWNS, make_runs, rows_of, write_rows

from dipo_pl.configs import shipped
from dipo_pl.data_modules.row_files import read_rows
from dipo_pl.storage.keyed import row_fingerprint

QUICK = """\
attacks:
  - {class_path: PlainQuestion}
  - {class_path: LeakAtK, init_args: {samples: 3, k: [1, 3], max_new_tokens: 4}}
  - {class_path: Membership}
  - {class_path: LogitLens}
"""


@pytest.fixture
def world(once, tmp_path):
    """A copy of a folder of runs, as the working folder of commands."""
    shutil.copytree(once("audit-runs", make_runs), tmp_path, dirs_exist_ok=True)
    # Their paths are those of the copy.
    for config in tmp_path.glob("runs/*/config.yaml"):
        text = yaml.safe_load(config.read_text())
        for part in (text["data"]["init_args"], text["model"]["init_args"]["policy"]["init_args"]):
            part.update({key: Path(each).name for key, each in part.items() if isinstance(each, str)})
        config.write_text(yaml.safe_dump(text))
    (tmp_path / "quick.yaml").write_text(QUICK)
    return tmp_path


AUDIT = ("audit", "runs/unlearned", "--against", "runs/never")
SHORT = (*AUDIT, "--config", "quick.yaml")


def figures(folder: Path) -> dict[str, object]:
    """What an audit found."""
    found: dict[str, object] = {"metrics": (folder / "metrics.jsonl").read_text()}
    for path in sorted((folder / "attacks").glob("*.json")):
        found[path.name] = json.loads(path.read_text())["value"]
    return found


class TestWhole:
    """The shipped config, once."""

    @pytest.fixture(scope="class")
    def audited(self, tmp_path_factory):
        folder = make_runs(tmp_path_factory.mktemp("audited"))
        config = yaml.safe_load(shipped()["audit.yaml"].read_text())
        for each in config["attacks"]:
            quick = {"LeakAtK": {"samples": 4, "max_new_tokens": 4}, "Relearning": {"steps": 2, "every": 2}}
            each.setdefault("init_args", {}).update(quick.get(each["class_path"], {}))
        (folder / "audit.yaml").write_text(yaml.safe_dump(config))
        return folder

    def test_every_attack_is_tried(self, audited, cli, monkeypatch, manifest, metrics):
        monkeypatch.chdir(audited)
        ended = cli(*AUDIT, "--config", "audit.yaml")
        assert ended.code == 0, ended.err
        run = audited / "runs" / "unlearned-audit"
        written = manifest(run)
        assert written["status"] == "finished"
        assert written["probe"] == {"kind": "audit", "of": "runs/unlearned", "weights": "unlearned"}
        assert list(written["attacks"]) == [
            "plain_question", "paraphrased_question", "answer_prefix", "leak_at_k", "membership", "unlearning_depth",
            "logit_lens", "quantization", "pruning", "relearning_forget", "relearning_retain", "relearning_holdout",
            "relearning_benign",
        ]  # fmt: skip
        assert written["attacks"]["relearning_benign"] == {
            "status": "not_tried",
            "reason": "it takes a file of other text (Relearning.file)",
        }
        (line,) = metrics(run)
        keys = {
            "leak_at_1", "leak_at_4", "leak_at_4_upper", "unlearning_depth", "memorization_score", "privacy_mia",
            "privacy_score", "target_memorization_score", "retain_only_leak_at_1",
        }  # fmt: skip
        assert keys <= line.keys()
        for name in written["attacks"]:
            assert f"\n{name} " in ended.out
        assert (
            "\nrelearning_benign was not tried: it takes a file of other text (Relearning.file)\n"
            in ended.out
        )

    def test_the_folder_holds_no_word_of_the_rows(self, audited):
        folder = audited / "runs" / "unlearned-audit"
        assert (folder / "attacks" / "leak_at_k.json").is_file()
        words = {word for name in NAMES for word in name.split()} | {*TOWNS}
        for path in folder.rglob("*"):
            if path.is_file():
                text = path.read_text()
                assert not [word for word in words if word in text], path


class TestResuming:
    def test_a_killed_audit_goes_on_and_ends_as_one_that_was_not(self, world, cli, metrics):
        assert cli(*SHORT).code == 0
        folder = world / "runs" / "unlearned-audit"
        whole = figures(folder)
        shutil.rmtree(folder)
        killed_at(cli, 2, *SHORT)
        assert json.loads((folder / "manifest.json").read_text())["status"] == "running"
        assert not (folder / "metrics.jsonl").exists()
        parts = {path: path.stat().st_mtime_ns for path in folder.rglob("*-*.json")}
        assert {path.name for path in parts} > {"plain_question-target.json"}
        assert "membership.json" not in {path.name for path in folder.rglob("*")}
        assert cli(*SHORT).code == 0
        assert figures(folder) == whole
        # Nothing was made twice.
        assert all(path.stat().st_mtime_ns == time for path, time in parts.items())
        for path in folder.rglob("*"):
            assert not path.name.endswith(".tmp")

    def test_a_finished_audit_is_only_shown(self, world, cli, monkeypatch):
        first = cli(*SHORT)
        from dipo_pl.attacks.plain_question import PlainQuestion

        monkeypatch.setattr(PlainQuestion, "run", None)
        again = cli(*SHORT)
        assert again.code == 0, again.err
        assert again.out == first.out

    def test_other_settings_are_another_result(self, world, cli, metrics):
        assert cli(*SHORT).code == 0
        folder = world / "runs" / "unlearned-audit"
        before = metrics(folder)[-1]
        (world / "quick.yaml").write_text(
            QUICK.replace("max_new_tokens: 4", "max_new_tokens: 4, recall: 0.001")
        )
        assert cli(*SHORT).code == 0
        after = metrics(folder)[-1]
        assert after.keys() == before.keys()
        assert after["forget_probability"] == before["forget_probability"]

    def test_other_rows_are_another_result(self, world, cli):
        """Though what is measured has the same tokens: only the entity that is looked for is another."""
        assert cli(*SHORT).code == 0
        part = world / "runs" / "unlearned-audit" / "attacks" / "logit_lens.json"
        before = json.loads(part.read_text())
        rows = [row | {"entity": row["answer"].split()[0]} for row in rows_of(NAMES)]
        write_rows(world / "forget.jsonl", rows)
        assert cli(*SHORT).code == 0
        after = json.loads(part.read_text())
        assert after["identity"] != before["identity"]
        assert after["value"]["series"] != before["value"]["series"]

    def test_damaged_parts_are_made_again(self, world, cli):
        assert cli(*SHORT).code == 0
        folder = world / "runs" / "unlearned-audit"
        whole = figures(folder)
        (folder / "attacks" / "leak_at_k.json").write_text("{")
        (folder / "attacks" / "parts" / "leak_at_k-target.json").write_text(
            '{"identity": "other", "value": []}'
        )
        assert cli(*SHORT).code == 0
        assert figures(folder) == whole


def killed_at(cli, attack, *words):
    """Run a command in a forked process, and kill it when its n-th attack, counted from 0, is at its second model."""
    from dipo_pl.attacks.subject import Subject

    fresh = Subject.fresh
    loaded = []

    def kill(self, name):
        loaded.append(name)
        if len(loaded) == 3 * attack + 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return fresh(self, name)

    def command():
        Subject.fresh = kill
        cli(*words)

    process = multiprocessing.get_context("fork").Process(target=command)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def test_a_model_that_goes_meanwhile_ends_the_audit_and_it_goes_on_later(world, cli, monkeypatch, manifest):
    from dipo_pl.attacks.membership import Membership

    run = Membership.run

    def without(self, subject):
        (world / "runs" / "never" / "hf").rename(world / "elsewhere")
        return run(self, subject)

    monkeypatch.setattr(Membership, "run", without)
    ended = cli(*SHORT)
    assert ended.code == 1
    (line,) = ended.errors
    assert "TrainingError: the retain-only model cannot be loaded: no model folder runs/never/hf" in line
    assert manifest(world / "runs" / "unlearned-audit")["status"] == "running"
    monkeypatch.undo()
    monkeypatch.chdir(world)
    (world / "elsewhere").rename(world / "runs" / "never" / "hf")
    assert cli(*SHORT).code == 0
    assert manifest(world / "runs" / "unlearned-audit")["attacks"]["membership"]["status"] != "not_tried"


class TestLacking:
    """What is missing is said of each attack, and the others run."""

    def test_without_a_model_that_never_knew(self, world, cli, manifest):
        config = QUICK + "  - {class_path: UnlearningDepth}\n"
        (world / "quick.yaml").write_text(config)
        ended = cli("audit", "runs/unlearned", "--config", "quick.yaml")
        assert ended.code == 0, ended.err
        found = manifest(world / "runs" / "unlearned-audit")["attacks"]
        assert found["unlearning_depth"]["reason"] == "it takes a retain-only model (--against)"
        assert {each["status"] for each in found.values()} <= {"not_tried", "not_forgotten"}
        assert "leak_at_1" in (world / "runs" / "unlearned-audit" / "metrics.jsonl").read_text()

    def test_without_a_holdout_and_columns(self, tmp_path, cli, manifest):
        rows = [{key: row[key] for key in ("question", "answer")} for row in rows_of(NAMES)]
        make_runs(tmp_path, holdout=False, rows=rows)
        (tmp_path / "quick.yaml").write_text(
            "attacks: [PlainQuestion, Membership, ParaphrasedQuestion, {class_path: Relearning, init_args: "
            "{source: holdout}}, LogitLens]"
        )
        ended = cli(*SHORT)
        assert ended.code == 0, ended.err
        run = tmp_path / "runs" / "unlearned-audit"
        found = manifest(run)["attacks"]
        reasons = {
            name: each["reason"] for name, each in found.items() if each["reason"].startswith("it takes")
        }
        assert reasons == {
            "membership": "it takes a holdout (data.holdout of the run)",
            "paraphrased_question": "it takes rows with a paraphrased_question",
            "relearning_holdout": "it takes a holdout (data.holdout of the run)",
        }
        lens = json.loads((run / "attacks" / "logit_lens.json").read_text())["value"]
        assert {row["span"] for row in lens["rows"]} == {"answer"}
        # Without wrong answers there is no score of memorization.
        assert "memorization_score" not in (run / "metrics.jsonl").read_text()

    def test_a_model_of_another_architecture(self, tmp_path, cli, manifest):
        make_runs(tmp_path, num_hidden_layers=3)
        (tmp_path / "quick.yaml").write_text("attacks: [UnlearningDepth, LogitLens]")
        ended = cli(*SHORT)
        assert ended.code == 0, ended.err
        found = manifest(tmp_path / "runs" / "unlearned-audit")["attacks"]["unlearning_depth"]
        assert found["status"] == "not_tried"
        assert found["reason"] == (
            "it takes models of one architecture (num_hidden_layers is 3 in the retain-only model and 2 in the target)"
        )

    def test_a_target_that_is_gone_is_left_out(self, world, cli, manifest):
        shutil.rmtree(world / "target")
        ended = cli(*SHORT)
        assert ended.code == 0, ended.err
        assert "no target, give one by --target: " in ended.err
        assert "target" not in manifest(world / "runs" / "unlearned-audit")["models"]

    def test_an_error_about_a_row_leaves_its_texts_out(self, world, cli, manifest):
        rows = read_rows(str(world / "forget.jsonl"))
        config = world / "runs" / "unlearned" / "config.yaml"
        text = yaml.safe_load(config.read_text())
        text["data"]["init_args"] |= {"max_length": 50, "too_long": "truncate"}
        config.write_text(yaml.safe_dump(text))
        (world / "quick.yaml").write_text("attacks: [UnlearningDepth]")
        ended = cli(*SHORT)
        assert ended.code == 0, ended.err
        reason = manifest(world / "runs" / "unlearned-audit")["attacks"]["unlearning_depth"]["reason"]
        assert reason.startswith("the entity '...' of the row that begins '...'")
        assert "raise it" in reason
        assert not any(row.question in reason or (row.entity or row.answer) in reason for row in rows)

    def test_results_of_attacks_that_are_left_out_go(self, world, cli):
        assert cli(*SHORT).code == 0
        (world / "quick.yaml").write_text("attacks: [Membership]")
        assert cli(*SHORT).code == 0
        folder = world / "runs" / "unlearned-audit" / "attacks"
        assert [each.name for each in folder.glob("*.json")] == ["membership.json"]

    def test_what_an_attack_refuses_is_its_reason(self, world, cli, manifest):
        (world / "quick.yaml").write_text(
            "attacks: [{class_path: UnlearningDepth, init_args: {threshold: 99.0}}, LogitLens]"
        )
        assert cli(*SHORT).code == 0
        found = manifest(world / "runs" / "unlearned-audit")["attacks"]
        assert found["unlearning_depth"]["status"] == "not_tried"
        assert "by this measure there was nothing to forget" in found["unlearning_depth"]["reason"]
        assert found["logit_lens"]["status"] != "not_tried" or "cannot tell" in found["logit_lens"]["reason"]


@pytest.fixture
def refused_line(world, cli):
    """Run a command that fails with one line and writes nothing, and return the line."""

    def run(*words):
        before = {path for path in world.rglob("*") if path.is_file()}
        ended = cli(*words)
        assert (ended.code, len(ended.errors)) == (2, 1), ended.err
        assert {path for path in world.rglob("*") if path.is_file()} == before
        return ended.errors[0]

    return run


@pytest.mark.parametrize(("words", "line"), [
    (("runs/none",), "runs/none is not a run folder"),
    (("runs/unlearned", "--against", "nothing/here/it/is"), "--against: no model folder nothing/here/it/is"),
    (("runs/unlearned", "--target", "runs/none"), "--target: no model folder runs/none"),
    (("runs/unlearned", "--devices", "0"), "--devices must be at least 1"),
    (("runs/unlearned", "--removed", "1.5"), "removed must be a share in (0, 1] (got 1.5)"),
    (("runs/unlearned", "--seed", "-1"), "seed must be at least 0 (got -1)"),
    (("runs/unlearned", "--config", "none.yaml"), "no config none.yaml"),
    (("runs/unlearned", "--config", "short.yaml"), "LeakAtK.k must be from 1 to LeakAtK.samples 3 (got 4)"),
    (("runs/unlearned", "--config", "twice.yaml"), "attacks would have logit_lens twice"),
    (("runs/unlearned", "--config", "empty.yaml"), "attacks names no attack"),
    (("runs/unlearned", "--config", "metric.yaml"), "attacks"),
])  # fmt: skip
def test_wrong_input_is_one_line(world, refused_line, words, line):
    (world / "short.yaml").write_text("attacks: [{class_path: LeakAtK, init_args: {samples: 3, k: [4]}}]")
    (world / "twice.yaml").write_text("attacks: [LogitLens, LogitLens]")
    (world / "empty.yaml").write_text("attacks: []")
    (world / "metric.yaml").write_text("attacks: [dipo_pl.metrics.membership.Membership]")
    assert line in refused_line("audit", *words)


def test_an_audit_of_other_weights_is_in_the_way(world, refused_line, cli, manifest):
    assert cli(*SHORT).code == 0
    manifest(world / "runs" / "unlearned", policy={"weights_at_end": "others"})
    assert "is a probe of runs/unlearned before that run was trained again" in refused_line(*SHORT)


def test_a_run_of_its_own_is_not_overwritten(world, refused_line):
    (world / "runs" / "unlearned-audit").mkdir()
    (world / "runs" / "unlearned-audit" / "manifest.json").write_text(
        '{"status": "finished", "command": "fit"}'
    )
    assert "unlearned-audit is a run of its own, and would be overwritten" in refused_line(*SHORT)


def test_an_audit_is_not_audited(world, refused_line, cli):
    assert cli(*SHORT).code == 0
    assert "is itself a probe" in refused_line("audit", "runs/unlearned-audit")


def test_other_tokenizers_are_refused(world, refused_line):
    tokenizer = world / "runs" / "never" / "hf" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    tokenizer.write_text(json.dumps(content))
    assert "the retain-only model runs/never/hf has another tokenizer" in refused_line(*SHORT)


def test_an_attack_of_ones_own_is_the_example_of_the_page(world, cli, metrics, monkeypatch):
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "audit.md").read_text()
    files = dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL))
    assert sorted(files) == ["hint.py", "hint.yaml", "test_hint.py"]
    for name, text in files.items():
        (world / name).write_text(text)
    monkeypatch.syspath_prepend(world)
    scope: dict = {}
    exec(compile(files["test_hint.py"], "test_hint.py", "exec"), scope)
    scope["test_a_hint_holds_no_word"]()
    ended = cli(*AUDIT, "--config", "hint.yaml")
    assert ended.code == 0, ended.err
    line = metrics(world / "runs" / "unlearned-audit")[-1]
    assert {
        "hint_rouge_l_recall",
        "target_hint_rouge_l_recall",
        "retain_only_hint_rouge_l_recall",
    } <= line.keys()
    assert "\nhint " in ended.out


def test_two_ranks_give_what_one_gives(world, process):
    one = process(*SHORT)
    assert one.code == 0, one.err
    folder = world / "runs" / "unlearned-audit"
    whole = figures(folder)
    shutil.rmtree(folder)
    two = process(*SHORT, "--devices", "2", fresh=True)
    assert two.code == 0, two.err
    assert json.loads((folder / "manifest.json").read_text())["world_size"] == 2
    assert figures(folder) == whole


def test_rows_have_fingerprints_of_the_users_key(world, cli, refused_line):
    ended = cli(*SHORT, "--key", "my.key")
    assert ended.code == 0, ended.err
    folder = world / "runs" / "unlearned-audit"
    key = bytes.fromhex((world / "my.key").read_text().strip())
    found = json.loads((folder / "rows.json").read_text())["rows"]
    rows = read_rows(world / "forget.jsonl")
    assert found == [row_fingerprint(key, row) for row in rows]
    assert not [path for path in folder.rglob("*") if path.is_file() and key.hex() in path.read_text()]
    (world / "other.key").write_text("00" * 32)
    assert "--key is not the key that" in refused_line(*SHORT, "--key", "other.key")
    assert "which may be handed on" in refused_line(*SHORT, "--key", "runs/unlearned-audit/my.key")


def test_rows_that_are_not_measured(world, refused_line):
    config = world / "runs" / "unlearned" / "config.yaml"
    text = yaml.safe_load(config.read_text())
    text["data"]["init_args"]["evaluate"] = ["retain"]
    config.write_text(yaml.safe_dump(text))
    assert "data.evaluate leaves out the forget set" in refused_line(*SHORT)
    write_rows(world / "forget.jsonl", [{"question": "Q?"}])
    assert "forget.jsonl" in refused_line(*SHORT)
