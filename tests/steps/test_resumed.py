"""A run with a step scheme that is killed within a step ends bitwise as if nothing had happened."""

import json
from pathlib import Path

import pytest
import torch
from at_step import killed_and_gone_on

# Two batches a step, and dropout: a resumed run repeats the draws of all passes.
RUN = (
    "fit", "--config", "smoke.yaml", "--trainer.max_epochs", "2", "--forget_quality.generate_every", "0",
    "--model.policy.config", "{model_type: gpt2, n_embd: 32, n_layer: 2, n_head: 2, n_positions: 128}",
    "--model.policy.vocab_size", "300", "--data.evaluation_rows", "3", "--samples.rows", "0", "--model.dropout", "true",
    "--data.batch_size", "4", "--trainer.accumulate_grad_batches", "2", "--last_checkpoint.every_n_steps", "2",
)  # fmt: skip


@pytest.mark.parametrize("config", ["sam.yaml", "gru.yaml"])
def test_killed_within_a_step(cli, process, config):
    run = (*RUN, "--config", config, "--name", "run")
    ended = killed_and_gone_on(cli, process, run, hook="on_before_optimizer_step", step=4)
    assert "resuming in epoch" in ended.err
    assert json.loads(Path("runs/run/manifest.json").read_text())["resumed_at_steps"] == [4]
    assert cli(*run[:-1], "straight").code == 0
    ours, theirs = (
        torch.load(Path("runs", name, "checkpoints/last.ckpt"), weights_only=True)
        for name in ("run", "straight")
    )
    assert ours["global_step"] == theirs["global_step"] == 6
    assert all(torch.equal(each, theirs["state_dict"][name]) for name, each in ours["state_dict"].items())
    moments = [each["optimizer_states"][0]["state"] for each in (ours, theirs)]
    assert all(torch.equal(moments[0][key]["exp_avg"], moments[1][key]["exp_avg"]) for key in moments[1])
