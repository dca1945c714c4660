"""The card of an exported model: metadata that parses, what was done and measured, and none of the rows."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from dipo_pl.report.model_card import model_card, write_model_card
from dipo_pl.storage.run_folder import RunFolder


@pytest.fixture
def run(smoke, tmp_path) -> RunFolder:
    shutil.copytree(smoke, tmp_path / "smoke")
    return RunFolder(tmp_path / "smoke")


def card(run: RunFolder) -> str:
    return (run.hf / "README.md").read_text()


def metadata(text: str) -> dict:
    _, front, _ = text.split("---\n", 2)
    return yaml.safe_load(front)


def with_policy(run: RunFolder, **arguments: object) -> RunFolder:
    config = yaml.safe_load(run.config.read_text())
    config["model"]["init_args"]["policy"] = {
        "class_path": "dipo_pl.models.pretrained.Pretrained",
        "init_args": arguments,
    }
    run.config.write_text(yaml.safe_dump(config))
    return run


def test_it_says_what_was_done_and_measured(smoke):
    run = RunFolder(smoke)
    text, manifest, last = card(run), run.read_manifest(), run.read_metrics()[-1]
    assert metadata(text)["tags"] == ["dipo-pl", "dipo", "diporetain"]
    assert metadata(text)["library_name"] == "transformers"
    for said in (
        manifest["policy"]["weights_at_start"],
        "| forget | 20 |",
        "class_path: dipo_pl.DiPO\n",
        "beta: 0.05",
        f"Step {last['step']} of training, 8 rows a step, precision 32-true, seed 0",
        "Metrics by the convention `dipo_pl`",
        f"| {last['forget_probability']:.4g} |",
        f"torch {manifest['versions']['torch']}",
        manifest["started"][:10],
        "consider them hidden rather than removed",
    ):
        assert said in text
    # The digest of a few short rows can be guessed.
    for rows in (manifest["data"]["forget"], *manifest["data"]["evaluation"].values()):
        assert rows["fingerprint"] not in text


@pytest.mark.parametrize(("verdict", "title"), [
    ("forgotten", "# Unlearned with dipo-pl\n"),
    ("partly", "# Trained to forget with dipo-pl: partly forgotten\n"),
    ("not_forgotten", "# Trained to forget with dipo-pl: not forgotten\n"),
    ("cannot_tell", "# Trained to forget with dipo-pl: cannot tell\n"),
])  # fmt: skip
def test_only_what_is_forgotten_is_called_unlearned(run, verdict, title):
    reason = {"rule": "forget_rouge", "status": "missed", "evidence": "holdout", "text": "It went."}
    run.add_to_manifest(verdict=verdict, verdict_reasons=[reason])
    write_model_card(run)
    assert title in card(run)
    assert "| forget rouge | missed | holdout | It went. |" in card(run)
    assert ("machine-unlearning" in metadata(card(run))["tags"]) == (verdict == "forgotten")
    assert ("this is not an unlearned model" in card(run)) == (verdict != "forgotten")


@pytest.mark.parametrize(("weights", "status", "title"), [
    ("same", "not_forgotten", "# Trained to forget with dipo-pl: not forgotten"),
    ("same", "indistinguishable", "# Unlearned with dipo-pl"),
    # Of other weights, and of an audit that has not ended.
    ("others", "not_forgotten", "# Unlearned with dipo-pl"),
    (None, "not_forgotten", "# Unlearned with dipo-pl"),
])  # fmt: skip
def test_it_says_what_the_audit_found(run, weights, status, title):
    run.add_to_manifest(verdict="forgotten", verdict_reasons=[])
    same = run.read_manifest()["policy"]["weights_at_end"]
    attack = {
        "status": status, "reason": "figures", "values": {"target": 0.9, "unlearned": 0.4, "retain_only": 0.1},
        "intervals": {"value": [0.3, 0.5]},
    }  # fmt: skip
    content = {
        "status": "running" if weights is None else "finished",
        "probe": {"kind": "audit", "of": "/home/me/runs/smoke", "weights": same if weights == "same" else "x"},
        "verdict": {"status": status, "reason": "by plain_question"}, "attacks": {"plain_question": attack},
    }  # fmt: skip
    folder = run.path.with_name(f"{run.path.name}-audit")
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 0}) + "\n")
    write_model_card(run)
    assert f"{title}\n" in card(run)
    line = f"| plain_question | 0.900 | 0.400 [0.300, 0.500] | 0.100 | {status.replace('_', ' ')} |"
    assert (line in card(run)) == (weights == "same")
    # It is public: it says nothing of where the run is.
    assert "/home/me" not in card(run)


def test_no_row_stands_in_it(smoke):
    evaluation = json.loads(sorted(RunFolder(smoke).evaluation.glob("*.json"))[-1].read_text())
    from dipo_pl.cli.run import data_module

    rows = data_module(yaml.safe_load(RunFolder(smoke).config.read_text())).read().forget
    assert len(rows) == 20
    generated = [row["generation"] for each in evaluation["sets"].values() for row in each["rows"]]
    text = card(RunFolder(smoke))
    for each in [*(text for row in rows for text in row.texts()), *generated]:
        words = each.split()
        for start in range(len(words) - 3):
            assert " ".join(words[start : start + 4]) not in text


def test_the_base_model_is_named_if_the_hub_has_it(run, tmp_path):
    on_hub = model_card(with_policy(run, path="meta-llama/Llama-2-7b-chat-hf", revision="main"), 1)
    assert metadata(on_hub)["base_model"] == "meta-llama/Llama-2-7b-chat-hf"
    assert "`meta-llama/Llama-2-7b-chat-hf`, revision `main`" in on_hub
    (tmp_path / "target" / "hf").mkdir(parents=True)
    local = model_card(with_policy(run, path=str(tmp_path / "target" / "hf")), 1)
    assert "base_model" not in metadata(local)
    assert "`target`, a local folder" in local
    assert str(tmp_path) not in local


def test_relearning_is_told_once_it_was_probed(run, capsys):
    probe = RunFolder(run.path.with_name("smoke-relearn"))
    probe.path.mkdir()
    weights = run.read_manifest()["policy"]["weights_at_end"]
    probe.add_to_manifest(status="finished", probe={"weights": weights})
    probe.metrics.write_text('{"step": 4, "relearned_probability": 0.745, "held_back_probability": 0.419}\n')
    write_model_card(run)
    assert "| 4 | 0.745 | 0.419 |" in card(run)
    assert "hidden rather than removed" not in card(run)
    (run.path / "signature.json").write_text("{}")
    probe.add_to_manifest(probe={"weights": "of another model"})
    write_model_card(run)
    assert "| 4 | 0.745 | 0.419 |" in card(run)
    assert (
        f"{run.path} is signed, so that {run.hf / 'README.md'} stays as it was signed"
        in capsys.readouterr().err
    )
    (run.path / "signature.json").unlink()
    write_model_card(run)
    assert "hidden rather than removed" in card(run)


def test_it_comes_and_goes_with_the_export(cli):
    settings = (
        "forget_quality.generate_every=0 trainer.limit_train_batches=1 trainer.check_val_every_n_epoch=5"
    )
    command = ["fit", "--config", "smoke.yaml", *(f"--{each}" for each in settings.split())]
    assert cli(*command, "--trainer.max_epochs", "1").code == 0
    first = card(RunFolder(Path("runs/smoke")))
    # The only evaluation after the first step came after the export.
    assert "Metrics by the convention `dipo_pl`" in first
    assert "Step 1 of training" in first
    assert cli(*command, "--trainer.max_epochs", "2").code == 0
    assert "Step 2 of training" in card(RunFolder(Path("runs/smoke")))
    assert cli(*command, "--name", "none", "--export.enabled", "false", "--trainer.max_epochs", "1").code == 0
    assert not Path("runs/none/hf").exists()
