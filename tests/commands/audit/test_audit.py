"""`dipo-pl audit` on finished runs whose models are tiny and random."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import yaml
from audit_inputs import AUDIT, QUICK, SHORT, figures
from audit_runs import NAMES, TOWNS, make_runs, rows_of, write_rows

from dipo_pl.configs import shipped


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
            "settle": "a file of other text (Relearning.file)",
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

    def test_texts_are_shown_to_who_asks(self, audited, cli, monkeypatch):
        monkeypatch.chdir(audited)
        before = {path: path.read_bytes() for path in audited.rglob("*") if path.is_file()}
        ended = cli(*AUDIT, "--config", "audit.yaml", "--show_texts")
        assert ended.code == 0, ended.err
        leaks = json.loads((audited / "runs/unlearned-audit/attacks/leak_at_k.json").read_text())["value"]
        most = max(leaks["rows"], key=lambda each: each["unlearned"])
        row = rows_of(NAMES)[most["row"]]
        line = f"leak_at_k, row {most['row']} ({most['unlearned']}): {row['question']} / {row['answer']}"
        assert line in ended.out.splitlines()
        changed = {path.name for path, content in before.items() if path.read_bytes() != content}
        # The command and its time.
        assert changed == {"manifest.json"}

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


def test_a_full_disk_is_one_line_and_loses_nothing(world, cli, monkeypatch, manifest):
    from dipo_pl.attacks.leak_at_k import LeakAtK

    run = LeakAtK.run
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(self, subject):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        return run(self, subject)

    monkeypatch.setattr(LeakAtK, "run", full)
    try:
        ended = cli(*SHORT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ended.code == 1
    (line,) = ended.errors
    part = "runs/unlearned-audit/attacks/parts/leak_at_k-target.json"
    assert f"cannot write {part} (File too large): free disk space" in line
    folder = world / "runs" / "unlearned-audit"
    assert manifest(folder)["status"] == "running"
    assert sorted(path.name for path in (folder / "attacks").glob("*.json")) == ["plain_question.json"]
    assert not any(folder.rglob("*.tmp"))
    whole = json.loads((folder / "attacks" / "plain_question.json").read_text())
    monkeypatch.setattr(LeakAtK, "run", run)
    assert cli(*SHORT).code == 0
    assert json.loads((folder / "attacks" / "plain_question.json").read_text()) == whole
    assert manifest(folder)["status"] == "finished"


def test_what_an_attack_refuses_is_its_reason_on_two_ranks_too(world, process):
    """A row that cannot be cut stands on one rank alone."""
    (world / "refuses.py").write_text(
        "from dipo_pl.attacks.base import Attack\n"
        "from dipo_pl.errors import InputError\n"
        "def refuse(row):\n"
        "    if row == 3:\n"
        "        raise InputError('row 3 is not to be had')\n"
        "class Refuses(Attack):\n"
        "    def run(self, subject):\n"
        "        subject.shared(range(5), refuse, 'rows')\n"
    )
    (world / "quick.yaml").write_text("attacks: [refuses.Refuses, LogitLens]")
    found = {}
    for devices in (1, 2):
        path = os.pathsep.join([str(world), *sys.path])
        ended = process(*SHORT, "--devices", str(devices), fresh=True, PYTHONPATH=path)
        assert ended.code == 0, ended.err
        written = json.loads((world / "runs" / "unlearned-audit" / "manifest.json").read_text())
        assert written["world_size"] == devices
        found[devices] = written["attacks"]["refuses"]
    assert found[1] == found[2]
    assert found[1]["reason"] == "row 3 is not to be had"
