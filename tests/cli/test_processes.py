"""Where one of several processes fails, all end soon, and what is said is the first cause."""

import json
import os
import subprocess
import sys
import time

import pytest

from dipo_pl.cli.processes import end_of

RUN = (
    "fit", "--config", "smoke.yaml", "--trainer.devices", "2", "--trainer.strategy", "ddp",
    "--forget_quality.generate_every", "0", "--data.evaluation_rows", "3", "--trainer.num_sanity_val_steps", "0",
    "--last_checkpoint.every_n_steps", "1",
)  # fmt: skip

FAILING = """
import os
import signal
import time
from pathlib import Path

from lightning import Callback


class Fail(Callback):
    def __init__(self, rank: int, how: str) -> None:
        self.rank, self.how = rank, how

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_rank != self.rank or trainer.global_step != 2:
            return
        Path("failed").write_text(str(time.time()))
        if self.how == "raise":
            raise ValueError("the first cause")
        os.kill(os.getpid(), signal.SIGTERM if self.how == "interrupt" else signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("rank", "how", "code", "line", "status"),
    [
        (
            0,
            "raise",
            1,
            "failed: ValueError: the first cause (traceback: runs/smoke/error.log)",
            "failed: the first cause",
        ),
        (
            1,
            "raise",
            1,
            "failed: ValueError: the first cause (traceback: runs/smoke/error.log)",
            "failed: the first cause",
        ),
        (
            1,
            "kill",
            1,
            *["failed: local rank 1 was killed by SIGKILL (possibly out of memory)"] * 2,
        ),
        (
            1,
            "interrupt",
            143,
            "interrupted by SIGTERM: the same command resumes the run",
            "interrupted by SIGTERM",
        ),
    ],
)
def test_all_end_and_the_first_cause_is_said(process, tmp_path, rank, how, code, line, status):
    (tmp_path / "failing.py").write_text(FAILING)
    how_words = ("--trainer.callbacks.rank", str(rank), "--trainer.callbacks.how", how)
    ended = process(*RUN, "--trainer.callbacks+", "failing.Fail", *how_words, modules=tmp_path, fresh=True)
    assert time.time() - float((tmp_path / "failed").read_text()) < 60
    assert ended.code == code, ended.err
    assert [each for each in ended.err.splitlines() if each.startswith("dipo-pl: ")] == [f"dipo-pl: {line}"]
    checkpoint = tmp_path / "runs/smoke/checkpoints/last.ckpt"
    assert checkpoint.is_file()
    assert "Connection closed" not in ended.err
    manifest = json.loads((tmp_path / "runs/smoke/manifest.json").read_text())
    assert manifest["status"] == status
    log = tmp_path / "runs/smoke/error.log"
    assert log.is_file() == (how == "raise")
    assert how != "raise" or log.read_text().splitlines()[-1] == "ValueError: the first cause"


def test_of_processes_that_another_launcher_made_the_first_cause_is_kept(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    words = (
        "--trainer.callbacks+",
        "failing.Fail",
        "--trainer.callbacks.rank",
        "1",
        "--trainer.callbacks.how",
        "raise",
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ended = subprocess.run(
        [*torchrun, "-m", "dipo_pl", *RUN, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert ended.returncode == 1
    lines = {each for each in ended.stderr.splitlines() if each.startswith("dipo-pl: ")}
    cause = "dipo-pl: failed: ValueError: the first cause (traceback: runs/smoke/error.log)"
    assert cause in lines
    assert all(each == cause or "lost connection to another rank" in each for each in lines)
    assert (
        json.loads((tmp_path / "runs/smoke/manifest.json").read_text())["status"] == "failed: the first cause"
    )
    assert (tmp_path / "runs/smoke/error.log").read_text().splitlines()[-1] == "ValueError: the first cause"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (255, ("local rank 1 ended with exit code 255", 1)),
        (-40, ("local rank 1 was killed by signal 40", 1)),
        (143, ("local rank 1 was interrupted by SIGTERM", 143)),
        (2, (None, 2)),
    ],
)
def test_any_code_of_another_process_is_accounted_for(code, said):
    assert end_of(1, code) == said
