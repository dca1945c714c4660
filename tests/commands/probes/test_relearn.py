"""`dipo-pl relearn` on real runs: training, measurements, refusals."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import yaml

from dipo_pl.attacks.relearning import Relearning as Attack
from dipo_pl.attacks.subject import Subject
from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.cli.run import data_module
from dipo_pl.commands.probes.finished_run import FinishedRun
from dipo_pl.commands.probes.probe import Relearning
from dipo_pl.data_modules.fictitious_authors import FictitiousAuthors
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.data_modules.training_batches import permutation
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.modules.finetuning import FineTuning
from dipo_pl.rows import Row

RATE = ("--lr", "0.003")


def rows_of(run: Path, step: int) -> list[dict]:
    result = json.loads((run / "evaluation" / f"step-{step:06d}.json").read_text())
    return result["sets"]["forget"]["rows"]


def test_recovery_is_traced_beside_the_retain_only_model(cli, runs, manifest, metrics):
    # The model card says what relearning has shown.
    before = {
        path: path.read_bytes() for path in runs.rglob("*") if path.is_file() and path.name != "README.md"
    }
    ended = cli(
        "relearn", "runs/unlearned", "runs/retain-only/", *RATE, "--share", "0.2", "--steps", "5", "--every", "2",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert {path: path.read_bytes() for path in before} == before
    arguments = []
    for name in ("unlearned", "retain-only"):
        run = runs / f"{name}-relearn"
        written = manifest(run)
        assert written["status"] == "finished"
        assert written["steps"] == 5
        weights = manifest(runs / name)["policy"]["weights_at_end"]
        assert written["probe"] == {
            "kind": "relearning", "of": f"runs/{name}", "weights": weights, "share": 0.2, "steps": 5,
        }  # fmt: skip
        assert not (run / "hf").exists()
        arguments.append([each.replace(name, "NAME") for each in written["arguments"]][-12:])
        trajectory = metrics(run)
        assert [each["step"] for each in trajectory] == [0, 2, 4, 5]
        # It starts from the model that was exported, and that is what was measured last.
        last = metrics(runs / name)[-1]
        assert trajectory[0]["forget_probability"] == pytest.approx(last["forget_probability"], rel=1e-4)
        # Answers are generated at both ends alone; nothing but the forget set is measured.
        assert ["forget_rouge_l_recall" in each for each in trajectory] == [True, False, False, True]
        assert not any("retain_probability" in each for each in trajectory)
        gain = {
            part: math.log(trajectory[-1][f"{part}_probability"] / trajectory[0][f"{part}_probability"])
            for part in ("relearned", "held_back")
        }
        assert gain["relearned"] > max(0.3, 1.3 * gain["held_back"])
        assert gain["held_back"] > 0
        assert f"\nruns/{name}\n   steps   relearned   held back\n       0" in ended.out
    assert arguments[0] == arguments[1]
    assert "--seed_everything" in arguments[0]


def test_metrics_of_each_part(cli, runs, metrics):
    assert cli("relearn", "runs/unlearned", *RATE, "--share", "0.3", "--steps", "1").code == 0
    run = runs / "unlearned-relearn"
    # 20 forget rows, of which the first 10 are measured.
    trained = set(permutation(0, "forget_share", 0, 20)[:6])
    assert 0 < len(trained & set(range(10))) < 6
    for measured in metrics(run):
        rows = rows_of(run, measured["step"])
        for part, chosen in {
            "relearned": [row for row in rows if row["row"] in trained],
            "held_back": [row for row in rows if row["row"] not in trained],
        }.items():
            closeness = [math.exp(-abs(row["log_truth_ratio"])) for row in chosen]
            expected = {
                "probability": sum(row["probability"] for row in chosen) / len(chosen),
                "rouge_l_recall": sum(row["rouge_l_recall"] for row in chosen) / len(chosen),
                "truth_ratio": sum(closeness) / len(chosen),
            }
            for name, value in expected.items():
                assert measured[f"{part}_{name}"] == pytest.approx(value, rel=1e-9, abs=1e-12)
        result = json.loads((run / "evaluation" / f"step-{measured['step']:06d}.json").read_text())
        assert result["metrics"]["relearned_probability"] == measured["relearned_probability"]


def test_with_all_rows_nothing_is_held_back(cli, runs, metrics):
    """20 rows are three batches: training ends within the first epoch."""
    assert cli("relearn", "runs/unlearned", *RATE, "--share", "1", "--steps", "1").code == 0
    trajectory = metrics(runs / "unlearned-relearn")
    assert [each["step"] for each in trajectory] == [0, 1]
    for measured in trajectory:
        assert measured["relearned_probability"] == pytest.approx(measured["forget_probability"])
        assert not any(name.startswith("held_back") for name in measured)


def test_answers_are_generated_at_the_end_wherever_it_comes(cli, runs, metrics):
    """Three steps an epoch: training ends within its second one, where only the probe knows that it does."""
    assert cli("relearn", "runs/unlearned", "--share", "1", "--steps", "4", "--name", "short").code == 0
    trajectory = metrics(runs / "unlearned-short")
    assert [each["step"] for each in trajectory] == [0, 2, 4]
    assert ["forget_rouge_l_recall" in each for each in trajectory] == [True, False, True]


def test_a_probe_of_a_model_that_was_trained_again_is_refused(cli, refused, runs):
    command = ("relearn", "runs/unlearned", "--steps", "1", "--name", "stale")
    assert cli(*command).code == 0
    assert "holds a run with another configuration" in refused(*command, "--share", "0.5")
    change(runs / "unlearned", policy={"weights_at_end": "other weights"})
    assert "unlearned-stale is a probe of runs/unlearned before that run was trained again" in refused(
        *command
    )


def test_what_is_not_given_is_as_the_config_has_it(cli, runs, manifest):
    assert cli("relearn", "runs/unlearned", "--steps", "2", "--seed", "3", "--name", "again").code == 0
    config = yaml.safe_load((runs / "unlearned-again" / "config.yaml").read_text())
    shipped = yaml.safe_load((Path(__file__).parents[3] / "configs" / "relearn.yaml").read_text())
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-5
    assert config["data"]["init_args"]["forget_share"] == shipped["data"]["init_args"]["forget_share"] == 0.1
    assert config["trainer"]["val_check_interval"] == shipped["trainer"]["val_check_interval"] == 2
    assert config["data"]["init_args"]["seed"] == config["seed_everything"] == 3
    assert config["data"]["init_args"]["authors"] == 4
    assert config["trainer"]["accelerator"] == "cpu"
    assert manifest(runs / "unlearned-again")["probe"]["steps"] == 2
    # The config it leaves is the same run.
    ended = cli("fit", "--config", "runs/unlearned-again/config.yaml")
    assert ended.code == 0, ended.err
    assert "is finished" in ended.out


def test_the_attack_of_an_audit_gives_the_same_curve(cli, runs, metrics):
    """Another loop, the same rows in the same order: 12 rows are a step of 8 and one of 4."""
    options = ("--share", "0.6", "--steps", "3", "--every", "1")
    assert cli("relearn", "runs/unlearned", *RATE, *options, "--seed", "3").code == 0
    run = FinishedRun.read("runs/unlearned")
    sources = {"unlearned": Pretrained(**run.policy)}
    data = data_module(run.config)
    data.connect(FineTuning(sources["unlearned"]))
    data.setup("validate")
    attack = Attack("forget", share=0.6, steps=3, every=1, lr=0.003)
    found = attack.run(Subject(sources, data, seed=3))
    expected = [each["held_back_probability"] for each in metrics(runs / "unlearned-relearn")]
    assert expected[-1] > 1.05 * expected[0]
    assert found.series["unlearned"] == pytest.approx(expected, rel=1e-5)


def test_forget_quality_is_measured_against_the_same_retain_result(cli, runs, metrics):
    config = runs / "unlearned" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["forget_quality"]["retain_result"] = "runs/retain-only"
    config.write_text(yaml.safe_dump(content))
    assert cli("relearn", "runs/unlearned", *RATE, "--steps", "1").code == 0
    assert all(0 < each["forget_quality"] <= 1 for each in metrics(runs / "unlearned-relearn"))


def test_killed_relearning_resumes_exactly(cli, killed, runs, manifest, metrics):
    command = (
        "relearn", "runs/unlearned", *RATE, "--share", "0.6", "--steps", "5", "--every", "2",
        "--data.batch_size", "4", "--data.global_batch_size", "4", "--name",
    )  # fmt: skip
    assert cli(*command, "whole").code == 0
    assert "is finished" in cli(*command, "whole").out
    whole = runs / "unlearned-whole"
    for hook, step in (("on_train_epoch_start", 3), ("on_train_end", 5)):
        killed(lambda trainer, step=step: trainer.global_step == step, *command, hook, hook=hook)
        run = runs / f"unlearned-{hook}"
        assert manifest(run)["status"] == "running"
        ended = cli(*command, hook)
        assert ended.code == 0, ended.err
        assert manifest(run)["resumed_at_steps"] == [step]
        assert manifest(run)["probe"]["kind"] == "relearning"
        assert metrics(run) == metrics(whole)
        ours, theirs = (
            torch.load(each / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            for each in (run, whole)
        )
        assert all(torch.equal(each, theirs[name]) for name, each in ours.items())


def test_rows_of_ones_own_and_adapters(cli, tmp_path, metrics):
    """The paths in a run's configuration stay as they are: as seen from here."""
    authors = FictitiousAuthors(authors=3, forget_authors=1).read()
    for name, rows in {"forget": authors.forget, "retain": authors.retain}.items():
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"question": row.question, "answer": row.answer}) + "\n" for row in rows[:6])
        )
    ended = cli(
        "fit", "--config", "smoke.yaml", "--config", "lora.yaml", "--data", "JSONL", "--data.forget", "forget.jsonl",
        "--data.retain", "retain.jsonl", "--trainer.max_epochs", "1", "--name", "mine",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    ended = cli("relearn", "runs/mine", *RATE, "--share", "0.5", "--steps", "2")
    assert ended.code == 0, ended.err
    config = yaml.safe_load(Path("runs/mine-relearn/config.yaml").read_text())
    assert config["data"]["init_args"]["forget"] == "forget.jsonl"
    assert config["model"]["init_args"]["policy"]["init_args"]["adapter"] is None
    trajectory = metrics(Path("runs/mine-relearn"))
    assert trajectory[-1]["relearned_probability"] > trajectory[0]["relearned_probability"]


@dataclass
class Result:
    sets: dict
    metrics: dict
    saved: ClassVar[list] = []

    def save(self, run) -> None:
        self.saved.append(self.metrics)


def test_evaluated_texts_that_are_not_forget_rows_are_in_neither_part(monkeypatch, tmp_path):
    trained, other, part = (Row((("user", name),), "answer") for name in ("trained", "other", "part"))
    values = [{"probability": probability} for probability in (0.9, 0.5, 0.1)]
    result = Result({"forget": SimpleNamespace(rows=values)}, {})
    data = SimpleNamespace(
        row_sets=SimpleNamespace(forget=[other, trained]),
        trained_forget_rows=[1],
        evaluation_sets=[SimpleNamespace(name="forget", rows=[trained, other, part])],
    )
    monkeypatch.setattr(ForgetQuality, "of", lambda trainer: SimpleNamespace(result=result))
    monkeypatch.setattr(ForgetRetain, "of", lambda trainer: data)
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir=tmp_path, loggers=[], global_step=0)
    Relearning("runs/first", 1).on_validation_end(trainer, None)
    assert Result.saved == [{"relearned_probability": 0.9, "held_back_probability": 0.5}]


def test_a_model_that_was_only_measured(cli, runs, metrics):
    """Published retain-only models are measured by `validate`; what is relearned is the model that was."""
    ended = cli(
        "validate", "--config", "smoke.yaml", "--model", "FineTuning", "--model.policy", "Pretrained",
        "--model.policy.path", "runs/retain-only/hf", "--name", "published",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    ended = cli("relearn", "runs/published", *RATE, "--steps", "1")
    assert ended.code == 0, ended.err
    measured, relearned = (metrics(runs / name)[0] for name in ("published", "published-relearn"))
    assert relearned["forget_probability"] == pytest.approx(measured["forget_probability"], rel=1e-6)


def test_the_folder_that_one_is_in(cli, runs, monkeypatch):
    monkeypatch.chdir(runs / "unlearned")
    assert cli("relearn", ".", "--steps", "1").code == 0
    assert (runs / "unlearned-relearn" / "metrics.jsonl").is_file()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("relearn", "the following arguments are required: RUN"),
        ("relearn runs/unlearned --share 0", "--share must be a share in (0, 1] (got 0.0)"),
        ("relearn runs/unlearned --share 1.5", "--share must be a share in (0, 1] (got 1.5)"),
        ("relearn runs/unlearned --share nan", "--share must be a share in (0, 1] (got nan)"),
        ("relearn runs/unlearned --share some", "argument --share: invalid float value: 'some'"),
        ("relearn runs/unlearned --steps 0", "--steps must be at least 1 (got 0)"),
        ("relearn runs/unlearned --every 0", "--every must be at least 1 (got 0)"),
        ("relearn runs/unlearned --lr 0", "--lr must be a finite number > 0 (got 0.0)"),
        ("relearn runs/unlearned --lr inf", "--lr must be a finite number > 0 (got inf)"),
        ("relearn runs", "runs is not a run folder"),
        ("relearn runs/unlearned runs/nothing", "runs/nothing is not a run folder"),
        ("quantize runs/unlearned --bits 3", "argument --bits: invalid choice: '3'"),
        ("quantize runs/unlearned --bits half", "argument --bits: invalid choice: 'half'"),
        ("quantize runs/nothing", "runs/nothing is not a run folder"),
        ("quantize runs/unlearned --name=other", "leave --name and --output_dir out"),
        *((f"{command} runs/unlearned --rows 3", "there is no option 'rows'") for command in ("relearn", "quantize")),
    ],
)  # fmt: skip
def test_bad_options(refused, runs, command, message):
    assert message in refused(*command.split())


def change(run: Path, **entries) -> None:
    path = run / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


OTHER_ROWS = {"forget": {"rows": 20, "fingerprint": "other"}}
SPOILED = [
    (lambda run: change(run, status="running"), "runs/unlearned is not finished (status: running)"),
    (lambda run: (run / "manifest.json").write_text('{"status": "fini'), "runs/unlearned is not a run folder"),
    (
        lambda run: change(run, probe={"kind": "relearning", "of": "runs/first"}),
        "runs/unlearned is itself a probe: probe runs/first instead",
    ),
    (lambda run: shutil.rmtree(run / "hf"), "no exported model (no config.json in runs/unlearned/hf)"),
    (
        lambda run: (run / "hf" / "adapter_config.json").write_text("{}"),
        "runs/unlearned/hf holds an adapter, not a complete model",
    ),
    (lambda run: (run / "hf" / "model.safetensors").unlink(), "cannot load the model of 'runs/unlearned/hf'"),
    (lambda run: (run / "config.yaml").unlink(), "cannot read the configuration of the run in runs/unlearned/"),
    (lambda run: (run / "config.yaml").write_text("data: 3\nmodel: {}\n"), "cannot read the configuration of the"),
    (lambda run: change(run, data=OTHER_ROWS), "runs/unlearned and runs/retain-only have different forget rows"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), SPOILED, ids=[message for _, message in SPOILED])
def test_a_run_that_cannot_be_probed(refused, runs, spoil, message):
    spoil(runs / "unlearned")
    assert message in refused("relearn", "runs/unlearned", "runs/retain-only")
