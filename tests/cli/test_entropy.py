"""Entropy terms from the command line: what is added to the loss, and what is refused."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RUN = (
    "fit", "--config", "smoke.yaml", "--config", "npo.yaml", "--config", "entropy.yaml", "--samples.rows", "0",
    "--forget_quality.generate_every", "0", "--data.evaluation_rows", "2", "--model.retain_weight", "2",
)  # fmt: skip


def scalars(run, name):
    return [each.value for each in EventAccumulator(str(run)).Reload().Scalars(f"train/{name}")]


def test_the_loss_has_both_terms_and_the_run_logs_them(cli):
    """lambda_r is not multiplied by the retain weight."""
    ended = cli(*RUN)
    assert ended.code == 0, ended.err
    run = Path("runs/smoke-npo-entropy")
    names = ("loss", "forget_loss", "retain_loss", "forget_entropy", "retain_entropy")
    steps = list(zip(*(scalars(run, name) for name in names), strict=True))
    assert len(steps) == 6
    for loss, forget, retain, of_forget, of_retain in steps:
        assert loss == pytest.approx(forget + 2 * retain + of_forget - 0.25 * of_retain, rel=1e-5)
        # In nats, of 512 tokens.
        assert 1 < of_forget < 6.3


def test_without_them_nothing_is_added(cli):
    ended = cli(*RUN, "--model.forget_entropy", "0", "--model.retain_entropy", "0")
    assert ended.code == 0, ended.err
    run = Path("runs/smoke-npo-entropy")
    assert "train/forget_entropy" not in EventAccumulator(str(run)).Reload().Tags()["scalars"]
    steps = zip(*(scalars(run, name) for name in ("loss", "forget_loss", "retain_loss")), strict=True)
    assert all(loss == pytest.approx(forget + 2 * retain, rel=1e-5) for loss, forget, retain in steps)


@pytest.mark.parametrize(("words", "line"), [
    (("--config", "rmu.yaml"),
     "model.forget_entropy is 1 and model.forget_loss is RMU, which acts on a layer's hidden states"),
    (("--model.retain_loss", "null"),
     "model.retain_entropy is -0.25 and model.retain_loss is null: the entropy stands beside a loss of logits"),
])  # fmt: skip
def test_refused_in_one_line(cli, words, line):
    ended = cli(*RUN, *words)
    assert ended.code == 2
    assert len(ended.errors) == 1
    assert line in ended.errors[0]
