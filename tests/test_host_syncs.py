"""A training step waits for its device only where it is known to."""

import ast

import pytest

# Reads whether a batch is padded, twice each time: policy and reference have a forward pass each.
OF_TRANSFORMERS = "masking_utils.py"


@pytest.mark.parametrize(
    ("options", "forward_passes"),
    [
        ((), 2),
        (("--config", "npo.yaml"), 2),
        (("--config", "graddiff.yaml"), 1),
        (("--config", "gru.yaml"), 4),
    ],
    ids=["DiPO", "NPO", "GradDiff", "GRU"],
)
def test_a_step_waits_once_beside_the_forward_passes(cli, options, forward_passes):
    """For its losses and gradient norm, before the optimizer changes weights."""
    ended = cli(
        "fit", "--config", "smoke.yaml", *options, "--data.batch_size", "2", "--trainer.max_steps", "4",
        "--trainer.log_every_n_steps", "100", "--trainer.num_sanity_val_steps", "0", "--forget_quality.generate_every",
        "0", "--trainer.callbacks+", "host_syncs.CountWaits", "--name", "run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    (line,) = [each for each in ended.out.splitlines() if each.startswith("waits ")]
    waits = ast.literal_eval(line.removeprefix("waits "))
    assert waits == {"training_monitor.py": 1, OF_TRANSFORMERS: 2 * forward_passes}
