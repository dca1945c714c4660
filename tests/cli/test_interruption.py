"""A signal to end saves, leaves with its code, and the same command ends as if there had been none."""

import json
import os
import signal
import time
from pathlib import Path

import forked
import pytest
import torch
from at_step import at

# GPT-2 has dropout; evaluations lie within epochs and at their ends, and answers are generated at every second one.
RUN = (
    "fit", "--config", "smoke.yaml", "--trainer.max_epochs", "3", "--data.evaluation_rows", "3",
    "--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", "2",
    "--forget_quality.generate_every", "2", "--forget_quality.max_new_tokens", "4",
    "--model.policy.config", "{model_type: gpt2, n_embd: 32, n_layer: 2, n_head: 2, n_positions: 128}",
    "--model.policy.vocab_size", "300", "--model.dropout", "true",
)  # fmt: skip


def sender(hook: str, step: int, number: int, **more: object) -> list[str]:
    return at("Send", hook=hook, step=step, number=int(number), **more)


@pytest.fixture(scope="module")
def whole(fit_once) -> Path:
    return fit_once("uninterrupted", *RUN[1:]) / "smoke"


def same(whole: Path, run: Path) -> bool:
    files = ["metrics.jsonl", "hf/model.safetensors"]
    files += [str(each.relative_to(whole)) for each in (whole / "evaluation").iterdir()]
    return all((whole / each).read_bytes() == (run / each).read_bytes() for each in files)


def saved_step() -> int:
    return torch.load("runs/smoke/checkpoints/last.ckpt", weights_only=True)["global_step"]


@pytest.mark.parametrize(("hook", "step", "number", "saved"), [
    ("on_train_batch_start", 4, signal.SIGTERM, 5),  # within an epoch
    ("on_before_optimizer_step", 3, signal.SIGUSR1, 4),  # a measurement follows
    ("on_train_batch_end", 6, signal.SIGINT, 6),  # the last batch of an epoch
    ("on_validation_batch_end", 4, signal.SIGTERM, 4),  # in the midst of a measurement
    ("on_train_batch_start", 8, signal.SIGTERM, 9),  # the last batch of all
])  # fmt: skip
def test_saved_where_it_was_and_gone_on_with(cli, whole, hook, step, number, saved):
    ended = cli(*RUN, *sender(hook, step, number))
    assert ended.code == 128 + number
    name = signal.Signals(number).name
    lines = [each for each in ended.err.splitlines() if each.startswith("dipo-pl:")]
    assert lines == [f"dipo-pl: interrupted by {name}: the same command resumes the run"]
    assert saved_step() == saved
    assert json.loads(Path("runs/smoke/manifest.json").read_text())["status"] == f"interrupted by {name}"
    again = cli(*RUN)
    assert again.code == 0, again.err
    assert "not resumable" not in again.err
    assert same(whole, Path("runs/smoke"))


def test_a_limit_of_steps_counts_epochs_as_ever(cli):
    """Saved between two epochs, where no measurement is due: Lightning would make the first one a batch longer."""
    limited = (*RUN, "--trainer.max_epochs", "9", "--trainer.max_steps", "8")
    assert cli(*limited, "--name", "straight").code == 0
    assert cli(*limited, *sender("on_train_batch_end", 3, signal.SIGTERM)).code == 143
    assert saved_step() == 3
    ended = cli(*limited)
    assert ended.code == 0, ended.err
    assert same(Path("runs/straight"), Path("runs/smoke"))
    manifests = [
        json.loads(Path("runs", name, "manifest.json").read_text()) for name in ("straight", "smoke")
    ]
    assert [each["epochs"] for each in manifests] == [3, 3]


def test_python_has_its_own_handlers_back(cli):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    assert cli(*RUN, *sender("on_validation_batch_end", 0, signal.SIGTERM, sanity=True)).code == 143
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_within_accumulated_batches_the_step_is_ended_first(cli):
    accumulated = (*RUN, "--trainer.accumulate_grad_batches", "2", "--data.batch_size", "4")
    assert cli(*accumulated, *sender("on_train_batch_start", 1, signal.SIGTERM)).code == 143
    assert saved_step() == 2
    assert cli(*accumulated).code == 0
    assert cli(*accumulated, "--name", "straight").code == 0
    assert same(Path("runs/straight"), Path("runs/smoke"))


def test_a_second_one_leaves_at_once(process, tmp_path):
    ended = process(*RUN, *sender("on_train_batch_start", 4, signal.SIGTERM, times=2))
    assert ended.code == -signal.SIGTERM
    assert torch.load(tmp_path / "runs/smoke/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3


def test_a_command_of_several_runs_ends_as_a_whole(tmp_path):
    log = tmp_path / "log"
    demo = forked.command(["demo"], log, folder=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "runs/demo_target/manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(demo, signal.SIGTERM)
    assert forked.wait(demo) == 143
    said = log.read_text()
    assert said.count("dipo-pl: interrupted by SIGTERM: the same command resumes the run") == 1
    assert "[1/3]" in said
    assert "[2/3]" not in said
