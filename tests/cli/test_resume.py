"""A run that is killed and started again with the same command ends bitwise as if nothing had happened."""

import json
from pathlib import Path

import pytest
import torch
from at_step import kill, killed_and_gone_on
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# GPT-2 has dropout, so a resumed run must also repeat the draws of the steps that it does over.
RUN = (
    "fit", "--config", "smoke.yaml", "--trainer.max_epochs", "3", "--forget_quality.generate_every", "0",
    "--model.policy.config", "{model_type: gpt2, n_embd: 32, n_layer: 2, n_head: 2, n_positions: 128}",
    "--model.policy.vocab_size", "300", "--data.evaluation_rows", "3", "--samples.rows", "0", "--model.dropout", "true",
)  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(fit_once) -> Path:
    return fit_once("never-killed", *RUN[1:]) / "smoke"


@pytest.mark.parametrize(("hook", "step", "every_n_steps"), [
    ("on_train_batch_start", 2, None),  # before there is a checkpoint
    ("on_train_batch_end", 5, None),  # within the second epoch
    ("on_train_batch_end", 5, 1),  # with a checkpoint within the epoch
    ("on_validation_epoch_end", 6, 4),  # trained, not yet measured, checkpoint of two steps before
    ("on_train_epoch_start", 6, None),  # between two epochs
    ("on_fit_end", 9, None),  # trained, not yet exported
])  # fmt: skip
def test_killed_run_ends_as_if_nothing_had_happened(
    cli, process, tmp_path, uninterrupted, hook, step, every_n_steps
):
    often = (*RUN, *(("--last_checkpoint.every_n_steps", every_n_steps) if every_n_steps else ()))
    kill(process, often, hook=hook, step=step)
    manifest = json.loads((tmp_path / "runs/smoke/manifest.json").read_text())
    assert manifest["status"] == "running"
    ended = cli(*often)
    assert ended.code == 0, ended.err
    ours, theirs = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        for run in (Path("runs/smoke"), uninterrupted)
    )
    assert ours["global_step"] == theirs["global_step"] == 9
    assert all(torch.equal(each, theirs["state_dict"][name]) for name, each in ours["state_dict"].items())
    moments = [each["optimizer_states"][0]["state"] for each in (ours, theirs)]
    assert all(torch.equal(moments[0][key]["exp_avg"], moments[1][key]["exp_avg"]) for key in moments[1])
    assert Path("runs/smoke/metrics.jsonl").read_text() == (uninterrupted / "metrics.jsonl").read_text()
    manifest = json.loads(Path("runs/smoke/manifest.json").read_text())
    assert manifest["status"] == "finished"
    start = json.loads((uninterrupted / "manifest.json").read_text())["policy"]["weights_at_start"]
    assert manifest["policy"]["weights_at_start"] == start
    assert len(manifest["resumed_at_steps"]) == (0 if step in (2, 9) else 1)
    assert (
        Path("runs/smoke/hf/model.safetensors").read_bytes()
        == (uninterrupted / "hf/model.safetensors").read_bytes()
    )
    drawn = EventAccumulator("runs/smoke", size_guidance={"scalars": 0}).Reload()
    # Around the checkpoint's step a point may stand twice, with the same value.
    for name, steps in {"train/loss": list(range(9)), "forget/probability": [0, 3, 6, 9]}.items():
        points = [each.step for each in drawn.Scalars(name)]
        assert sorted({*points}) == steps, name
        assert len(points) <= len(steps) + 1, name


def test_reference_is_the_policy_as_it_started_also_after_a_resume(cli, uninterrupted):
    """A reference taken from the resumed weights would put every margin at 0 and the loss at 2 ln 2 again."""
    constant = (*RUN, "--model.schedule", "constant_with_warmup")
    assert cli(*constant, "--trainer.max_epochs", "1").code == 0
    ended = cli(*constant, "--trainer.max_epochs", "2")
    assert ended.code == 0, ended.err
    assert "resuming from runs/smoke/checkpoints/last.ckpt" in ended.err
    steps = [json.loads(line)["step"] for line in Path("runs/smoke/metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 3, 6]
    losses = EventAccumulator("runs/smoke").Reload().Scalars("train/loss")
    resumed = next(each for each in losses if each.step == 3)
    # Margins of 0 would leave a difference of 1e-7.
    assert abs(resumed.value - 2 * 0.6931472) > 1e-5


def test_checkpoint_holds_no_reference(uninterrupted):
    checkpoint = torch.load(uninterrupted / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(name.startswith("model.") for name in checkpoint["state_dict"])
    parameters = {name for name in checkpoint["state_dict"] if name != "model.lm_head.weight"}
    (optimizer,) = checkpoint["optimizer_states"]
    assert len(optimizer["state"]) == len(parameters)


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = (
        torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (one, other)
    )
    assert ours["global_step"] == theirs["global_step"]
    return all(torch.equal(each, theirs["state_dict"][name]) for name, each in ours["state_dict"].items())


def test_a_run_ended_within_an_epoch_goes_on_with_the_rest_of_it(cli):
    """The step limit ends it; with a constant rate, the way there does not depend on the limit."""
    constant = (*RUN, "--model.schedule", "constant_with_warmup", "--model.warmup", "0")
    assert cli(*constant, "--trainer.max_steps", "5").code == 0
    ended = cli(*constant)
    assert ended.code == 0, ended.err
    assert "resuming in epoch 1 after 2 batches" in ended.err
    assert cli(*constant, "--name", "straight").code == 0
    assert same_weights(Path("runs/smoke"), Path("runs/straight"))


def test_killed_between_accumulated_batches(cli, process, tmp_path):
    often = (
        *RUN, "--trainer.accumulate_grad_batches", "2", "--data.batch_size", "4", "--last_checkpoint.every_n_steps",
        "2",
    )  # fmt: skip
    killed_and_gone_on(cli, process, often, hook="on_before_optimizer_step", step=4)
    assert cli(*often, "--name", "straight").code == 0
    assert same_weights(Path("runs/smoke"), Path("runs/straight"))


def test_killed_in_the_closing_measurement_is_not_finished(cli, process, tmp_path):
    seldom = (*RUN, "--trainer.check_val_every_n_epoch", "5")
    killed_and_gone_on(cli, process, seldom, hook="on_validation_start", step=9)
    steps = [json.loads(line)["step"] for line in Path("runs/smoke/metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 9]
    assert json.loads(Path("runs/smoke/manifest.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("step", [4, 6])
def test_an_evaluation_that_was_cut_short_is_made_again(cli, process, tmp_path, step):
    """Killed in the middle of a measurement, after a step that was due for a checkpoint as well."""
    command = (
        "fit", "--config", "smoke.yaml", "--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "null",
        "--trainer.val_check_interval", "2", "--last_checkpoint.every_n_steps", "1",
        "--forget_quality.generate_every", "2", "--data.evaluation_rows", "3",
    )  # fmt: skip
    assert cli(*command, "--name", "whole").code == 0
    killed_and_gone_on(cli, process, command, hook="on_validation_batch_end", step=step)
    ours, theirs = (Path(f"runs/{name}/metrics.jsonl").read_text() for name in ("smoke", "whole"))
    assert [json.loads(line)["step"] for line in theirs.splitlines()] == [0, 2, 4, 6, 8, 9]
    assert ours == theirs
