"""The retain weight as a dual variable: its arithmetic, and what becomes of it in a run."""

import math
from pathlib import Path

import forked
import pytest
import torch
from lightning import Callback, Trainer

from dipo_pl.data_modules.fictitious_authors import FictitiousAuthors
from dipo_pl.errors import TrainingError
from dipo_pl.losses import PDU, MaximumEntropy
from dipo_pl.losses.retain_weight import DualWeight, FixedWeight
from dipo_pl.models.from_config import FromConfig
from dipo_pl.modules.unlearning import Unlearning

RUN = (
    "fit", "--config", "smoke.yaml", "--config", "pdu.yaml", "--forget_quality.generate_every", "0",
    "--model.schedule", "constant_with_warmup", "--model.warmup", "0", "--data.evaluation_rows", "1", "--name", "run",
)  # fmt: skip

# Writes down the retain loss of each micro-batch, and the weight that it had and that there is after it.
RECORDER = """
from lightning import Callback

RECORDS = []


class Recorder(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.before = module.retain_weight.value

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        metrics = trainer.callback_metrics
        assert abs(metrics["train/retain_weight"].item() - self.before) < 1e-6 * self.before
        loss = metrics["train/retain_loss"].item()
        total = metrics["train/forget_loss"].item() + self.before * loss
        assert abs(metrics["train/loss"].item() - total) < 1e-4 * abs(total)
        RECORDS.append((trainer.current_epoch, trainer.global_step, loss, module.retain_weight.value))
"""


def dual(**changes):
    return DualWeight(**{"initial": 2.0, "epsilon": 0.5, "step": 4.0, "warmup_epochs": 0} | changes)


def updated(weight, losses, epoch=0, over_ranks=lambda sums: sums):
    """The weight after a step of micro-batches, each a loss or a loss and its weight."""
    for loss in losses:
        loss, *counts = loss if isinstance(loss, tuple) else (loss,)
        weight.observe(torch.tensor(loss, requires_grad=True), *counts)
    weight.update(epoch, over_ranks)
    return weight.value


def test_grows_above_the_bound_and_shrinks_below_it():
    weight = dual()
    for losses, expected in (([0.75], 3.0), ([0.0, 0.5], 2.0), ([0.0], 0.0), ([0.0], 0.0), ([1.0], 2.0)):
        assert updated(weight, losses) == expected
        assert type(weight.value) is float


def test_stands_still_while_it_warms_up():
    """What is seen before is not remembered, and ranks need not meet."""
    weight = dual(warmup_epochs=2)
    for epoch in (0, 1):
        assert updated(weight, [9.0], epoch, lambda sums: pytest.fail("not needed")) == 2.0
    assert updated(weight, [1.0], 2) == 4.0
    assert updated(weight, [1.0], 3) == 6.0


def test_rows_count_alike_whatever_batch_and_rank_they_are_in():
    """One rank has a batch of 3 rows and one of 1, the other one of 2 and none: weights as `step_weight` gives them."""
    other = dual()
    seen = []
    updated(other, [(2.0, 4 / 3), (9.0, 0.0)], over_ranks=lambda sums: seen.append(sums) or sums)
    found = updated(dual(), [(1.0, 2.0), (3.0, 2 / 3)], over_ranks=lambda sums: (sums + seen[0]) / 2)
    assert found == pytest.approx(2.0 + 4 * ((3 * 1 + 1 * 3 + 2 * 2) / 6 - 0.5), rel=1e-6)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_retain_loss_that_is_not_finite_ends_the_run(loss):
    """max(0, NaN) is 0: the retain term would be gone without a word."""
    weight = dual()
    with pytest.raises(TrainingError, match=f"the retain loss is {loss}"):
        updated(weight, [loss])
    assert weight.value == 2.0


def test_a_fixed_weight_stays_and_is_in_no_checkpoint():
    weight = FixedWeight(0.7)
    assert updated(weight, [9.0]) == 0.7
    assert (weight.state, dual().state) == ({}, {"retain_weight": 2.0})
    weight.load({"retain_weight": 3.0})
    assert weight.value == 0.7


def test_defaults_are_the_authors():
    weight = DualWeight()
    assert (weight.value, weight.epsilon, weight.step, weight.warmup_epochs) == (100.0, 0.3, 5.0, 5)


def settings(**given):
    return [word for name, value in given.items() for word in (f"--model.retain_weight.{name}", str(value))]


def test_follows_the_retain_loss_of_each_step(cli, monkeypatch):
    """3 micro-batches an epoch, two to a step: after a whole step, and after the rest of an epoch."""
    Path("recorder.py").write_text(RECORDER)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    import recorder

    recorder.RECORDS.clear()
    ended = cli(
        *RUN, *settings(initial=7, epsilon=4, step=0.5, warmup_epochs=1), "--trainer.max_epochs", "3",
        "--trainer.accumulate_grad_batches", "2", "--trainer.callbacks+", "recorder.Recorder",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    weight, losses, step, batches = 7.0, [], 0, []
    for epoch, steps, loss, after in recorder.RECORDS:
        losses.append(loss)
        batches.append(epoch)
        if steps > step:
            if epoch >= 1:
                weight += 0.5 * (sum(losses) / len(losses) - 4)
            losses, step = [], steps
        assert after == pytest.approx(weight, rel=1e-6)
    assert batches == [0] * 3 + [1] * 3 + [2] * 3
    assert step == 6
    assert weight > 7.5


def checkpoint(name):
    return torch.load(Path("runs", name, "checkpoints/last.ckpt"), weights_only=True)


def test_goes_on_where_it_was_after_a_resume(cli):
    run = (*RUN, *settings(initial=7, epsilon=4, step=0.5, warmup_epochs=0))
    assert cli(*run, "--trainer.max_epochs", "1").code == 0
    first = checkpoint("run")["retain_weight"]
    assert type(first) is float
    assert first > 7.5
    ended = cli(*run, "--trainer.max_epochs", "2")
    assert ended.code == 0, ended.err
    assert "resuming from" in ended.err
    assert cli(*run, "--trainer.max_epochs", "2", "--name", "straight").code == 0
    resumed, straight = checkpoint("run"), checkpoint("straight")
    assert resumed["retain_weight"] == straight["retain_weight"] > first
    assert all(torch.equal(each, straight["state_dict"][key]) for key, each in resumed["state_dict"].items())


class KeepWeight(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, module):
        Path(f"{self.path}-{trainer.global_rank}").write_text(repr(module.retain_weight.value))


def weight_of(path, rank=0):
    return float(Path(f"{path}-{rank}").read_text())


def train_a_step(path, ranks, batch_size):
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    # Rows that differ.
    policy = FromConfig({"model_type": "llama", "initializer_range": 1.0} | shape, vocab_size=300, seed=0)
    trainer = Trainer(
        accelerator="cpu", num_nodes=ranks, strategy="ddp" if ranks > 1 else "auto", max_steps=1,
        use_distributed_sampler=False, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        limit_val_batches=0, enable_model_summary=False, default_root_dir=path, callbacks=[KeepWeight(path)],
    )  # fmt: skip
    data = FictitiousAuthors(authors=2, forget_authors=1, batch_size=batch_size)
    module = Unlearning(policy, PDU(), MaximumEntropy(), dual(initial=7, epsilon=1, step=10))
    trainer.fit(module, datamodule=data)
    return path


def test_two_ranks_have_one_weight(tmp_path):
    """The retain loss is per sequence here, so that 2 ranks with 4 rows each see what one with 8 does."""
    one = weight_of(train_a_step(tmp_path / "one", 1, 8))
    forked.run_ranks(lambda rank: train_a_step(tmp_path / "two", 2, 4), tmp_path, forked.nodes())
    two = [weight_of(tmp_path / "two", rank) for rank in range(2)]
    assert two == pytest.approx([one, one], rel=1e-6)
    assert two[0] == two[1]
    # Of its own rows alone, a rank has another.
    half = weight_of(train_a_step(tmp_path / "half", 1, 4))
    assert half != pytest.approx(one, rel=1e-3)


def test_needs_a_retain_loss(cli):
    (error,) = cli(*RUN, "--model.retain_loss", "null").errors
    assert "model.retain_weight is a DualWeight" in error
    assert "model.retain_loss is null" in error


def test_a_number_is_a_weight(cli):
    ended = cli(*RUN, "--model.retain_weight", "0.5", "--print_config")
    assert "\n    retain_weight: 0.5\n" in ended.out
    (error,) = cli(*RUN, "--model.retain_weight", "-0.5").errors
    assert "model.retain_weight must be a finite number >= 0 (got -0.5)" in error
