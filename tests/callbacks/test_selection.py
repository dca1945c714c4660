"""Rules on hand-written figures, and in runs: the checkpoint kept, the export, the end of training."""

import json
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from safetensors.torch import load_file

from dipo_pl.callbacks.selection import BestCheckpoint, BestForgetQuality, FirstForgotten
from dipo_pl.errors import InputError
from dipo_pl.metrics.result import EvaluationResult
from dipo_pl.storage.run_folder import RunFolder

TARGET = {"step": 0, "model_utility": 0.8, "forget_rouge_l_recall": 1.0}
RETAIN = {"forget_rouge_l_recall": 0.4}


def quality(log10_p, utility):
    return {"forget_quality_log10_p": log10_p, "model_utility": utility}


def test_best_forget_quality_among_those_that_keep_utility():
    rule = BestForgetQuality(utility_share=0.9)
    scores = [
        rule.score(quality(*each), TARGET, RETAIN) for each in ((-9, 0.8), (-1, 0.71), (-2, 0.73), (0, 0.4))
    ]
    assert scores == [
        -9,
        pytest.approx(-1e6 - (0.9 - 0.71 / 0.8), abs=1e-6),
        -2,
        pytest.approx(-1e6 - 0.4, abs=1e-6),
    ]
    assert rule.score({"forget_probability": 0.1}, TARGET, RETAIN) is None


def test_best_forget_quality_ends_after_its_patience():
    rule = BestForgetQuality(patience=2)
    assert [rule.ends(scores) for scores in ([-3.0], [-3.0, -4], [-3.0, -4, -5], [-3.0, -4, -2], [-3.0, -3, -3])] == [
        False, False, True, False, True,
    ]  # fmt: skip


def test_first_forgotten():
    rule = FirstForgotten()
    scores = [rule.score({"forget_rouge_l_recall": each}, TARGET, RETAIN) for each in (0.9, 0.41, 0.4, 0.1)]
    assert scores == [pytest.approx(-0.5), pytest.approx(-0.01), 0.0, 0.0]
    assert [rule.ends(scores[:count]) for count in (1, 2, 3)] == [False, False, True]
    assert rule.score({"forget_probability": 0.1}, TARGET, RETAIN) is None


def test_what_a_rule_needs_of_the_figures():
    with pytest.raises(InputError, match="needs Model Utility, which is not measured"):
        BestForgetQuality().score(quality(-1, 0.8), {"step": 0}, RETAIN)
    with pytest.raises(InputError, match="needs 'forget_knowledge', which is not in what is measured here"):
        FirstForgotten("forget_knowledge").score(TARGET, TARGET, RETAIN)
    with pytest.raises(InputError, match="utility_share must be in"):
        BestForgetQuality(utility_share=1.5)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("BestForgetQuality", "--forget_quality.retain_result", "null"),
            "needs a retain-only model: give its result as",
        ),
        (
            ("FirstForgotten", "--forget_quality.retain_result", "null"),
            "needs a retain-only model: give its result as",
        ),
        (
            ("FirstForgotten", "--selection.rule.figure", "nope"),
            "needs 'nope', which is not in the retain-only model's",
        ),
        (
            ("BestForgetQuality", "--forget_quality.generate_every", "0"),
            "needs Model Utility, which is not measured",
        ),
        (
            ("BestForgetQuality", "--forget_quality.utility_sets", "[]"),
            "needs Model Utility, which is not measured",
        ),
        (
            ("FirstForgotten", "--trainer.num_sanity_val_steps", "0"),
            "the model before training, which is not measured",
        ),
    ],
)
def test_what_a_rule_lacks_is_told_before_anything_is_measured(cli, learned, retain_only, options, line):
    ended = cli(*unlearn(learned, retain_only, "lacking", *options))
    assert ended.code == 2
    assert line in ended.errors[0]
    assert not Path("runs/lacking").exists()


def test_a_monitor_that_is_measured_now_and_then(cli, learned):
    ended = cli(
        "fit", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", learned / "hf",
        "--checkpoint.monitor", "model_utility", "--checkpoint.mode", "max", "--forget_quality.generate_every", "2",
        "--trainer.max_epochs", "3", "--name", "monitored",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    run = RunFolder(Path("runs/monitored"))
    utility = {each["step"]: each["model_utility"] for each in run.read_metrics() if "model_utility" in each}
    assert list(utility) == [0, 6, 9]
    best = max((6, 9), key=lambda step: (utility[step], -step))
    assert [path.name.partition("step=")[2] for path in run.checkpoints.glob("epoch*.ckpt")] == [
        f"{best}.ckpt"
    ]


def unlearn(learned, retain_only, name, rule, *more):
    return (
        "fit", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", learned / "hf",
        "--forget_quality.retain_result", retain_only, "--model.optimizer.lr", "1e-3", "--name", name,
        "--selection.rule", rule, *more,
    )  # fmt: skip


def test_the_export_is_the_best_checkpoint_and_speaks_for_the_run(cli, learned, retain_only):
    ended = cli(*unlearn(learned, retain_only, "best", "BestForgetQuality", "--trainer.max_epochs", "4"))
    assert ended.code == 0, ended.err
    run = RunFolder(Path("runs/best"))
    trained = run.read_metrics()[1:]
    floor = 0.95 * run.read_metrics()[0]["model_utility"]

    def score(each):
        kept = each["model_utility"] >= floor
        return (kept, each["forget_quality_log10_p"] if kept else each["model_utility"])

    best = max(trained, key=score)
    assert run.result_step == best["step"] == run.read_manifest()["exported_step"]
    kept = next(path for path in run.checkpoints.glob("epoch*.ckpt") if f"step={best['step']}" in path.name)
    saved = torch.load(kept, weights_only=True)["state_dict"]
    exported = load_file(run.hf / "model.safetensors")
    assert all(torch.equal(tensor, saved[f"model.{name}"]) for name, tensor in exported.items())
    assert len(list(run.checkpoints.glob("epoch*.ckpt"))) == 1


def test_an_evaluation_without_a_score_is_never_the_best(cli, learned, retain_only):
    """Answers are generated at the last evaluation alone, so that only it has a Model Utility."""
    seldom = ("--forget_quality.generate_every", "10", "--trainer.max_epochs", "3")
    ended = cli(*unlearn(learned, retain_only, "seldom", "BestForgetQuality", *seldom))
    assert ended.code == 0, ended.err
    run = RunFolder(Path("runs/seldom"))
    assert [each["step"] for each in run.read_metrics() if "model_utility" in each] == [0, 9]
    assert run.result_step == run.read_manifest()["exported_step"] == 9
    assert [path.name for path in run.checkpoints.glob("epoch*.ckpt")] == ["epoch=2-step=9.ckpt"]


def test_no_checkpoint_is_kept_for_an_evaluation_without_a_score(tmp_path):
    keeper = BestCheckpoint(tmp_path, monitor="selection", mode="max", save_top_k=1)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert not keeper.check_monitor_top_k(trainer, torch.tensor(float("-inf")))
    assert keeper.check_monitor_top_k(trainer, torch.tensor(-1e6))


def test_a_run_that_the_rule_has_ended_is_not_trained_further(cli, learned, retain_only):
    """Killed between its last checkpoint and its end."""
    command = (
        *unlearn(learned, retain_only, "first", "FirstForgotten", "--selection.stop", "true", "--trainer.max_epochs", "30"),
        "--selection.rule.figure", "forget_probability",
    )  # fmt: skip
    assert cli(*command).code == 0
    run = RunFolder(Path("runs/first"))
    before = run.read_manifest()
    run.add_to_manifest(status="running")
    again = cli(*command)
    assert again.code == 0, again.err
    after = run.read_manifest()
    assert (after["status"], after["steps"]) == ("finished", before["steps"])
    assert after["policy"]["weights_at_end"] == before["policy"]["weights_at_end"]
    assert after["exported_step"] == before["exported_step"]


def test_an_evaluation_ahead_of_the_checkpoint_does_not_end_training(cli, learned, retain_only):
    """Killed after a measurement and before its checkpoint: the run goes on from the one before."""
    command = (
        *unlearn(learned, retain_only, "ahead", "FirstForgotten", "--selection.stop", "true"),
        "--model.optimizer.lr", "1e-6", "--selection.rule.figure", "forget_probability",
    )  # fmt: skip
    assert cli(*command, "--trainer.max_epochs", "2").code == 0
    run = RunFolder(Path("runs/ahead"))
    EvaluationResult("dipo_pl", {"forget_probability": 0.0}, {}, step=9).save(run)
    ended = cli(*command, "--trainer.max_epochs", "4")
    assert ended.code == 0, ended.err
    assert run.read_manifest()["steps"] == 12


def test_a_rule_and_a_monitor_are_too_many(cli, learned, retain_only):
    ended = cli(
        *unlearn(
            learned, retain_only, "both", "BestForgetQuality", "--checkpoint.monitor", "retain_probability"
        )
    )
    assert ended.code == 2
    assert "selection.rule and checkpoint.monitor (retain_probability) both say" in ended.errors[0]


def test_training_ends_once_the_forget_set_is_forgotten(cli, learned, retain_only):
    ended = cli(
        *unlearn(learned, retain_only, "first", "FirstForgotten", "--selection.stop", "true", "--trainer.max_epochs", "30"),
        "--selection.rule.figure", "forget_probability",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "selection.rule FirstForgotten expects nothing better: training ends here" in ended.err
    records = RunFolder(Path("runs/first")).read_metrics()
    bar = RunFolder(retain_only).read_metrics()[-1]["forget_probability"]
    assert [each["forget_probability"] <= bar for each in records] == [False] * (len(records) - 1) + [True]
    assert len(records) < 30
    assert json.loads(Path("runs/first/manifest.json").read_text())["exported_step"] == records[-1]["step"]


def test_a_monitor_that_is_not_measured_is_refused_before_training(cli):
    ended = cli("fit", "--config", "smoke.yaml", "--checkpoint.monitor", "nought")
    assert ended.code == 2
    assert (
        "checkpoint.monitor is 'nought', which is not measured (measured: forget_probability"
        in ended.errors[0]
    )
