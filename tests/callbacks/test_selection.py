"""Selection rules in runs: the checkpoint kept, the export, the end of training."""

import pytest
import torch
from lightning import Trainer
from safetensors.torch import load_file

from dipo_pl.callbacks.best_checkpoint import BestCheckpoint
from dipo_pl.callbacks.selection_rules import NearestToUnseen
from dipo_pl.metrics.result import EvaluationResult
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.storage.fingerprints import weights_fingerprint
from dipo_pl.storage.run_folder import RunFolder


def unlearn(learned, retain_only, *more):
    return (
        "fit", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", learned / "hf",
        "--forget_quality.retain_result", retain_only, "--model.optimizer.lr", "1e-3", "--name", "run",
        "--selection.rule", *more,
    )  # fmt: skip


def first_forgotten(learned, retain_only, *more):
    return (
        *unlearn(learned, retain_only, "FirstForgotten", "--selection.stop", "true", *more),
        "--selection.rule.metric", "forget_probability",
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "runs" / "run")


def kept(run):
    return [path.name for path in run.checkpoints.glob("epoch*.ckpt")]


@pytest.mark.parametrize(("options", "line"), [
    (("BestForgetQuality", "--forget_quality.retain_result", "null"), "needs a retain-only model: give its result as"),
    (("FirstForgotten", "--forget_quality.retain_result", "null"), "needs a retain-only model: give its result as"),
    (("FirstForgotten", "--selection.rule.metric", "nope"), "needs 'nope', which is not in the retain-only model's"),
    (("BestForgetQuality", "--forget_quality.generate_every", "0"), "needs Model Utility, which is not measured"),
    (("BestForgetQuality", "--forget_quality.utility_sets", "[]"), "needs Model Utility, which is not measured"),
    (("FirstForgotten", "--trainer.num_sanity_val_steps", "0"), "FirstForgotten needs the evaluation before training"),
    (("LowestForgetProbability", "--model", "FineTuning", "--data.train_on", "all"), "FineTuning makes none forget"),
    (("BestForgetQuality", "--checkpoint.monitor", "retain_probability"),
     "selection.rule and checkpoint.monitor (retain_probability) both say"),
])  # fmt: skip
def test_what_a_rule_lacks_is_reported_before_anything_is_measured(
    cli, learned, retain_only, run, options, line
):
    ended = cli(*unlearn(learned, retain_only, *options))
    assert ended.code == 2
    assert line in ended.errors[0]
    assert not run.path.exists()


@pytest.mark.parametrize(("options", "named"), [
    (("--checkpoint.monitor", "nought"), "checkpoint.monitor"),
    (("--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "nought"), "the monitor of EarlyStopping"),
])  # fmt: skip
def test_a_monitor_that_is_not_measured_is_refused_before_training(cli, options, named):
    ended = cli("fit", "--config", "smoke.yaml", *options)
    assert ended.code == 2
    assert f"{named} must be a measured metric (got 'nought'): give one of forget_" in ended.errors[0]


def test_a_monitor_of_a_measured_metric_is_one(cli):
    stopping = ("--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "forget_probability")
    ended = cli("fit", "--config", "smoke.yaml", *stopping, "--trainer.max_epochs", "1")
    assert ended.code == 0, ended.err


def test_a_monitor_that_is_measured_at_some_evaluations(cli, learned, run):
    ended = cli(
        "fit", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", learned / "hf",
        "--checkpoint.monitor", "model_utility", "--checkpoint.mode", "max", "--forget_quality.generate_every", "2",
        "--trainer.max_epochs", "3", "--name", "run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    utility = {each["step"]: each["model_utility"] for each in run.read_metrics() if "model_utility" in each}
    assert list(utility) == [0, 6, 9]
    best = max((6, 9), key=lambda step: (utility[step], -step))
    assert [name.partition("step=")[2] for name in kept(run)] == [f"{best}.ckpt"]


def test_the_best_checkpoint_is_exported_and_represents_the_run(cli, learned, retain_only, run):
    ended = cli(*unlearn(learned, retain_only, "BestForgetQuality", "--trainer.max_epochs", "4"))
    assert ended.code == 0, ended.err
    target, *trained = run.read_metrics()

    def score(each):
        useful = each["model_utility"] >= 0.95 * target["model_utility"]
        return (useful, each["forget_quality_log10_p"] if useful else each["model_utility"])

    best = max(trained, key=score)
    assert run.final_step == best["step"] == run.read_manifest()["exported_step"]
    (name,) = kept(run)
    assert f"step={best['step']}" in name
    saved = torch.load(run.checkpoints / name, weights_only=True)["state_dict"]
    exported = load_file(run.hf / "model.safetensors")
    assert all(torch.equal(tensor, saved[f"model.{name}"]) for name, tensor in exported.items())
    # A run that starts from it records the same.
    assert run.read_manifest()["exported_weights"] == weights_fingerprint(Pretrained(str(run.hf)).model())


def test_an_evaluation_without_a_score_is_never_the_best(cli, learned, retain_only, run, tmp_path):
    """Answers are generated only at the last evaluation, so that only it has a Model Utility."""
    seldom = ("--forget_quality.generate_every", "10", "--trainer.max_epochs", "3")
    ended = cli(*unlearn(learned, retain_only, "BestForgetQuality", *seldom))
    assert ended.code == 0, ended.err
    assert [each["step"] for each in run.read_metrics() if "model_utility" in each] == [0, 9]
    assert run.final_step == run.read_manifest()["exported_step"] == 9
    assert kept(run) == ["epoch=2-step=9.ckpt"]
    keeper = BestCheckpoint(tmp_path, monitor="selection", mode="max", save_top_k=1)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert not keeper.check_monitor_top_k(trainer, torch.tensor(float("-inf")))
    assert keeper.check_monitor_top_k(trainer, torch.tensor(-1e6))


def test_training_ends_once_the_forget_set_is_forgotten(cli, learned, retain_only, run):
    command = first_forgotten(learned, retain_only, "--trainer.max_epochs", "30")
    ended = cli(*command)
    assert ended.code == 0, ended.err
    assert (
        "training ends: forget_probability is at the retain-only model's (selection.rule FirstForgotten)"
        in ended.err
    )
    records = run.read_metrics()
    bar = RunFolder(retain_only).read_metrics()[-1]["forget_probability"]
    assert [each["forget_probability"] <= bar for each in records] == [False] * (len(records) - 1) + [True]
    assert len(records) < 30
    before = run.read_manifest()
    assert before["exported_step"] == records[-1]["step"]
    # Killed between its last checkpoint and its end, the run is not trained further.
    run.add_to_manifest(status="running")
    again = cli(*command)
    assert again.code == 0, again.err
    after = run.read_manifest()
    assert (after["status"], after["steps"]) == ("finished", before["steps"])
    assert after["policy"]["weights_at_end"] == before["policy"]["weights_at_end"]
    assert after["exported_step"] == before["exported_step"]


def test_an_evaluation_ahead_of_the_checkpoint_does_not_end_training(cli, learned, retain_only, run):
    """Killed after a measurement and before its checkpoint, the run resumes from the checkpoint before."""
    command = (*first_forgotten(learned, retain_only), "--model.optimizer.lr", "1e-6")
    assert cli(*command, "--trainer.max_epochs", "2").code == 0
    EvaluationResult("dipo_pl", {"forget_probability": 0.0}, {}, step=9).save(run)
    ended = cli(*command, "--trainer.max_epochs", "4")
    assert ended.code == 0, ended.err
    assert run.read_manifest()["steps"] == 12


def test_a_run_without_a_retain_only_model_ends_when_it_has_forgotten(cli, learned, run):
    words = unlearn(learned, "null", "LowestForgetProbability", "--selection.stop", "true")
    words = (*words, "--selection.rule.utility_share", "0.3")
    ended = cli(*words, "--trainer.max_epochs", "30", "--forget_quality.generate_every", "0")
    assert ended.code == 0, ended.err
    assert "training ends: P(forget) is that of a model that never saw the rows" in ended.err
    target, *trained = run.read_metrics()
    assert len(trained) < 30
    reached = [each["forget_probability"] <= target["holdout_probability"] for each in trained]
    assert reached == [False] * (len(trained) - 1) + [True]
    assert run.read_manifest()["exported_step"] == trained[-1]["step"]


def test_a_rule_knows_how_many_rows_are_measured(cli, learned, run, monkeypatch):
    monkeypatch.setattr(NearestToUnseen, "score", lambda rule, *_: print("rows", dict(rule.rows)))
    words = unlearn(learned, "null", "NearestToUnseen", "--forget_quality.generate_every", "0")
    ended = cli(*words, "--trainer.max_steps", "1", "--data.evaluation_rows", "2")
    assert ended.code == 0, ended.err
    assert "rows {'forget': 2, 'retain': 2, 'holdout': 2}" in ended.out
    assert run.read_manifest()["data"]["evaluation"]["forget"]["of"] > 2


def test_a_best_checkpoint_that_never_was_is_no_reason_to_lose_the_last_one(cli, learned, run):
    words = unlearn(learned, "null", "LowestForgetProbability", "--trainer.limit_val_batches", "1")
    ended = cli(
        *words,
        "--data.evaluation_tokens",
        "512",
        "--trainer.max_epochs",
        "1",
        "--forget_quality.generate_every",
        "0",
    )
    assert ended.code == 0, ended.err
    assert "exported the last one (step 3)" in ended.err
    assert (run.hf / "model.safetensors").is_file()
