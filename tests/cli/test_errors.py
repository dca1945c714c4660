"""Failures that take a run, or more than one, to come about; test_error_table.py has all others."""

import json
import re
from pathlib import Path

import torch

from dipo_pl.cli.error_lines import one_line

SMOKE = ("fit", "--config", "smoke.yaml")


def write(name: str, *lines: str) -> str:
    Path(name).write_text("".join(line + "\n" for line in lines))
    return name


def question(number: int, **more: object) -> str:
    return json.dumps({"question": f"Who wrote book {number}?", "answer": f"Author {number}."} | more)


def jsonl(forget: str, retain: str, *more: str | Path) -> tuple[str | Path, ...]:
    """A run on two files with smoke.yaml's model."""
    data = ("--data", "JSONL", "--data.forget", forget, "--data.retain", retain)
    return "fit", "--config", "smoke.yaml", *data, *more


def test_rows_in_both_files_are_told(cli):
    rows = [question(each) for each in range(8)]
    ended = cli(*jsonl(write("f.jsonl", *rows[:4]), write("r.jsonl", *rows[2:]), "--trainer.max_epochs", "1"))
    assert ended.code == 0, ended.err
    assert "dipo-pl: warning: 2 of 4 forget rows are also in the retain set" in ended.err


def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(process, tmp_path):
    ended = process(*SMOKE, "--model.forget_loss", "user_classes.Diverging")
    assert ended.code == 1
    (line,) = ended.errors
    assert "the loss is nan (not finite) at epoch 1, step 4 (forget rows [" in line
    assert "retain rows [" in line
    run = tmp_path / "runs" / "smoke"
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert all(each.isfinite().all() for each in checkpoint["state_dict"].values())
    assert "TrainingError" in (run / "error.log").read_text()
    assert json.loads((run / "manifest.json").read_text())["status"].startswith("failed: the loss is nan")
    assert not (run / "hf").exists()


def test_debug_shows_the_traceback(cli):
    ended = cli(*SMOKE, "--model.forget_loss.beta", "-1", "--debug")
    assert ended.code == 2
    assert "Traceback" in ended.err


def test_rows_that_changed_under_the_same_name_are_refused(cli):
    rows = [question(each) for each in range(8)]
    run = jsonl(
        write("f.jsonl", *rows[:4]), write("r.jsonl", *rows[4:]), "--forget_quality.generate_every", "0"
    )
    assert cli(*run, "--trainer.max_epochs", "1").code == 0
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    write("f.jsonl", *(question(each) for each in range(10, 14)))
    ended = cli(*run, "--trainer.max_epochs", "2")
    assert ended.code == 2
    assert (
        "the forget rows differ from those that runs/smoke was trained on (4 rows, 4 there)"
        in ended.errors[0]
    )
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before
    # As if a template wrote something else today.
    write("f.jsonl", *rows[:4])
    manifest = Path("runs/smoke/manifest.json")
    manifest.write_text(re.sub('("tokens": {\\s*"forget": ")[^"]*', r"\g<1>0", manifest.read_text()))
    ended = cli(*run, "--trainer.max_epochs", "2")
    assert (
        "the token ids of the forget rows differ from those that runs/smoke was trained on" in ended.errors[0]
    )


def test_a_package_that_is_missing_is_named():
    """As jsonargparse tells it of a logger of Lightning whose own package is not installed."""
    lines = (
        "Does not validate against any of the Union subtypes", "Subtypes: [<class 'Logger'>, <class 'bool'>]", "Errors:",
        "  - Problem with given class_path 'lightning.pytorch.loggers.WandbLogger':",
        "    Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip install -U 'wandb>=0.12.10'`",
        "  - Expected a <class 'bool'>",
    )  # fmt: skip
    assert one_line("\n".join(lines)) == "WandbLogger needs wandb>=0.12.10: pip install 'wandb>=0.12.10'"
