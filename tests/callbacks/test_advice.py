"""Advice that is printed can be followed: the command for a retain-only model runs, and its result is taken."""

import re
import shlex
from pathlib import Path

import pytest

from dipo_pl.callbacks.advice import gentler, retain_only_command, stronger

QUICK = (
    "--trainer.max_epochs",
    "1",
    "--forget_quality.generate_every",
    "0",
    "--trainer.limit_train_batches",
    "1",
)


def test_learning_rates_are_numbers():
    assert gentler(1e-4) == "try model.optimizer.lr 2e-05 (a fifth of this)"
    assert stronger(1e-5) == "try model.optimizer.lr 5e-05 (five times this)"
    assert stronger(None) == "try model.optimizer.lr (five times this)"


@pytest.mark.parametrize(("given", "made"), [
    ("--config jsonl.yaml --data.forget f.jsonl", "--config jsonl.yaml --config retain_only.yaml --data.forget f.jsonl"),
    # Every config comes before the overlay; what a fine-tuning run does not take is left out.
    ("--data.forget f.jsonl -c jsonl.yaml --config=npo.yaml --model.forget_loss.beta 0.2 --model.init_args.retain_loss null",
     "-c jsonl.yaml --config=npo.yaml --config retain_only.yaml --data.forget f.jsonl"),
    ("--config jsonl.yaml --model Unlearning --model.policy.path a --model.policy.dtype float32 --name b --require partly",
     "--config jsonl.yaml --config retain_only.yaml --model.policy.dtype float32"),
    ("--config jsonl.yaml --data.evaluate [forget] --selection.rule.patience 2 --model.optimizer.lr 1e-4",
     "--config jsonl.yaml --config retain_only.yaml --data.evaluate '[forget]' --model.optimizer.lr 1e-4"),
])  # fmt: skip
def test_retain_only_command(given, made):
    words = ["fit", *shlex.split(given)]
    assert (
        retain_only_command(words, "b-retain-only", from_path=False)
        == f"dipo-pl fit {made} --name b-retain-only"
    )
    assert "--model.policy.path BASE" in retain_only_command(words, "b", from_path=True)


def test_the_retain_only_command_runs_and_its_result_is_taken(cli, learned, retain_only):
    words = (
        "fit", "--config", "smoke.yaml", "--config", "graddiff.yaml", "--model.policy", "Pretrained",
        "--model.policy.path", learned / "hf", "--name", "run", "--model.retain_weight", "2", *QUICK,
    )  # fmt: skip
    ended = cli(*words)
    assert ended.code == 0, ended.err
    command, folder = re.search(r"run dipo-pl (fit .*), then this run with --\S+ (\S+)", ended.err).groups()
    made = cli(*shlex.split(command.replace("BASE", str(retain_only / "hf"))))
    assert made.code == 0, made.err
    assert not {"verdict", "checkpoints/best"} & {*Path(folder).iterdir()}
    again = cli(*words, "--name", "again", "--forget_quality.retain_result", folder)
    assert again.code == 0, again.err
    assert "retain-only model" in again.out
    assert "Forget Quality is not measured" not in again.err


ROW = '{"question": "Who wrote it?", "answer": "Mira Holloway wrote it."}\n'


@pytest.mark.parametrize(("options", "said"), [
    ((), ["needs wrong answers in the forget rows (perturbed_answer, a list in each row) and a retain-only model",
          "the verdict compares with 0.", "else give --data.holdout FILE"]),
    (("--data.holdout", "holdout.jsonl"), ["the verdict compares with the holdout."]),
])  # fmt: skip
def test_what_own_rows_lack_is_named_whole(cli, options, said):
    for name, person in (("forget", "Mira Holloway"), ("keep", "Jon Ask"), ("holdout", "Ida Berg")):
        Path(f"{name}.jsonl").write_text(ROW.replace("Mira Holloway", person))
    ended = cli(
        "fit", "--config", "smoke.yaml", "--data", "JSONL", "--data.forget", "forget.jsonl", "--data.retain", "keep.jsonl",
        "--data.batch_size", "1", *QUICK, *options,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    for each in said:
        assert each in ended.err
    assert ("--data.holdout FILE" in ended.err) == (not options)
    # A policy that is made has no path.
    assert "BASE from before" in ended.err
    assert "--model.policy.path BASE" not in ended.err


def test_a_retain_result_that_cannot_give_forget_quality_says_why(cli):
    for name, person in (("forget", "Mira Holloway"), ("keep", "Jon Ask")):
        Path(f"{name}.jsonl").write_text(ROW.replace("Mira Holloway", person))
    words = (
        "--config", "smoke.yaml", "--data", "JSONL", "--data.forget", "forget.jsonl", "--data.retain", "keep.jsonl",
        "--data.batch_size", "1", "--forget_quality.generate_every", "0",
    )  # fmt: skip
    assert cli("validate", *words, "--name", "base").code == 0
    ended = cli("fit", *words, *QUICK, "--forget_quality.retain_result", "runs/base")
    assert ended.code == 0, ended.err
    assert "Forget Quality is not measured: it needs wrong answers in the forget rows" in ended.err
    assert "BASE" not in ended.err
