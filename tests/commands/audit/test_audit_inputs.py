"""What an audit lacks is said of each attack, and what it is given wrong is one line."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import yaml
from audit_inputs import QUICK, SHORT
from audit_runs import NAMES, make_runs, rows_of, write_rows
from lightning.fabric import Fabric

from dipo_pl.attacks.base import Outcome
from dipo_pl.commands.audit import models
from dipo_pl.commands.audit.models import identity_of
from dipo_pl.data_modules.row_files import read_rows
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.storage.files import locked
from dipo_pl.storage.keyed import row_fingerprint


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
        parts = ["membership-retain_only", "membership-target", "membership-unlearned", "weights"]
        assert sorted(each.stem for each in (folder / "parts").glob("*.json")) == parts

    def test_what_an_attack_refuses_is_its_reason(self, world, cli, manifest):
        (world / "quick.yaml").write_text(
            "attacks: [{class_path: UnlearningDepth, init_args: {threshold: 99.0}}, LogitLens]"
        )
        assert cli(*SHORT).code == 0
        found = manifest(world / "runs" / "unlearned-audit")["attacks"]
        assert found["unlearning_depth"]["status"] == "not_tried"
        assert "by this measure there was nothing to forget" in found["unlearning_depth"]["reason"]
        assert found["logit_lens"]["status"] != "not_tried" or "cannot tell" in found["logit_lens"]["reason"]

    def test_numbers_that_are_not_finite_are_no_result(self, world, cli, manifest, monkeypatch):
        from dipo_pl.attacks.logit_lens import LogitLens

        (world / "quick.yaml").write_text("attacks: [LogitLens]")
        monkeypatch.setattr(LogitLens, "run", lambda *_: Outcome("P", {"unlearned": math.nan}, {}))
        assert cli(*SHORT).code == 0
        folder = world / "runs" / "unlearned-audit"
        found = manifest(folder)["attacks"]["logit_lens"]
        assert found["status"] == "not_tried"
        assert "logit_lens: the unlearned model is not finite (nan)" in found["reason"]
        assert not (folder / "attacks" / "logit_lens.json").exists()


@pytest.mark.parametrize("devices", ["1", "2"])
def test_an_audit_in_use_starts_no_further_process(world, cli, monkeypatch, devices):
    monkeypatch.setattr(Fabric, "launch", None)
    with locked(world / "runs" / "unlearned-audit"):
        ended = cli(*SHORT, "--devices", devices)
    assert (ended.code, len(ended.errors)) == (2, 1)
    assert "runs/unlearned-audit is used by another process" in ended.errors[0]


def test_a_signed_audit_stays_as_it_is(world, refused_line):
    (world / "runs" / "unlearned-audit").mkdir()
    (world / "runs" / "unlearned-audit" / "signature.json").write_text("{}")
    line = (
        "runs/unlearned-audit is signed, and this would change it: remove runs/unlearned-audit/signature.json"
    )
    assert line in refused_line(*SHORT)


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
    # Without a key nothing says whether they are still those of the rows.
    assert "rows.json has the rows' fingerprints of an audit with --key" in refused_line(*SHORT)
    assert "which may be handed on" in refused_line(*SHORT, "--key", "runs/unlearned-audit/my.key")


def test_rows_that_are_not_measured(world, refused_line):
    config = world / "runs" / "unlearned" / "config.yaml"
    text = yaml.safe_load(config.read_text())
    text["data"]["init_args"]["evaluate"] = ["retain"]
    config.write_text(yaml.safe_dump(text))
    assert "data.evaluate leaves out the forget set" in refused_line(*SHORT)
    write_rows(world / "forget.jsonl", [{"question": "Q?"}])
    assert "forget.jsonl" in refused_line(*SHORT)


def test_what_a_model_is_loaded_from_and_how_is_part_of_its_identity(world, monkeypatch):
    monkeypatch.chdir(world)
    model = Pretrained("target")
    first = identity_of(model)
    assert identity_of(Pretrained("target")) == first
    for other in (
        Pretrained("target", dtype="bfloat16"), Pretrained("target", quantization="nf4"), Pretrained("runs/never/hf"),
        Pretrained("target", tokenizer="runs/never/hf"),
    ):  # fmt: skip
        assert identity_of(other) != first
    commits = [Path("cache/models--a--b/snapshots") / each for each in ("1f", "2e")]
    found = []
    for commit in commits:
        monkeypatch.setattr(models, "model_folder", lambda *_, commit=commit: commit)
        found.append(identity_of(Pretrained("a/b")))
    assert found[0] != found[1]
    # Time and size of the weights are compared in a folder.
    monkeypatch.undo()
    monkeypatch.chdir(world)
    os.utime("target/model.safetensors", ns=(0, 0))
    assert identity_of(model) != first
