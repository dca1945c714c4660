"""Where one of several processes fails, all end soon, and what is said is the first cause."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from at_step import at

from dipo_pl.cli.processes import end_of
from dipo_pl.cli.run_cli import RunCLI

RUN = (
    "fit", "--config", "smoke.yaml", "--trainer.devices", "2", "--trainer.strategy", "ddp",
    "--forget_quality.generate_every", "0", "--data.evaluation_rows", "3", "--trainer.num_sanity_val_steps", "0",
    "--last_checkpoint.every_n_steps", "1",
)  # fmt: skip

RAISED = "failed: ValueError: the first cause (traceback: runs/smoke/error.log)"
KILLED = "failed: local rank 1 was killed by SIGKILL (possibly out of memory)"


@pytest.mark.parametrize(("options", "code", "line", "status"), [
    (at("Raise", rank=0, step=2), 1, RAISED, "failed: the first cause"),
    (at("Raise", rank=1, step=2), 1, RAISED, "failed: the first cause"),
    (at("Send", rank=1, step=2), 1, KILLED, KILLED),
    (at("Send", rank=1, step=2, number=int(signal.SIGTERM)), 143,
     "interrupted by SIGTERM: the same command resumes the run", "interrupted by SIGTERM"),
])  # fmt: skip
def test_all_end_and_the_first_cause_is_said(process, tmp_path, options, code, line, status):
    ended = process(*RUN, *options)
    assert time.time() - float((tmp_path / "acted").read_text()) < 60
    assert ended.code == code, ended.err
    assert [each for each in ended.err.splitlines() if each.startswith("dipo-pl: ")] == [f"dipo-pl: {line}"]
    assert "Connection closed" not in ended.err
    run = tmp_path / "runs/smoke"
    assert (run / "checkpoints/last.ckpt").is_file()
    assert json.loads((run / "manifest.json").read_text())["status"] == status
    assert (run / "error.log").is_file() == (line == RAISED)
    assert line != RAISED or (run / "error.log").read_text().splitlines()[-1] == "ValueError: the first cause"


def test_of_processes_that_another_launcher_made_the_first_cause_is_kept(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    ended = subprocess.run(
        [*torchrun, "-m", "dipo_pl", *RUN, *at("Raise", rank=1, step=2)], cwd=tmp_path, capture_output=True, text=True,
        timeout=120, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
    )  # fmt: skip
    assert ended.returncode == 1
    lines = {each for each in ended.stderr.splitlines() if each.startswith("dipo-pl: ")}
    assert f"dipo-pl: {RAISED}" in lines
    assert all(each == f"dipo-pl: {RAISED}" or "lost connection to another rank" in each for each in lines)
    run = tmp_path / "runs/smoke"
    assert json.loads((run / "manifest.json").read_text())["status"] == "failed: the first cause"
    assert (run / "error.log").read_text().splitlines()[-1] == "ValueError: the first cause"


@pytest.mark.parametrize(("code", "said"), [
    (255, ("local rank 1 ended with exit code 255", 1)),
    (-40, ("local rank 1 was killed by signal 40", 1)),
    (143, ("local rank 1 was interrupted by SIGTERM", 143)),
    (2, (None, 2)),
])  # fmt: skip
def test_any_code_of_another_process_is_accounted_for(code, said):
    assert end_of(1, code) == said


def test_the_first_process_says_that_it_waits_for_other_nodes(monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29400")
    words = ["fit", "--config", "smoke.yaml", "--trainer.strategy", "ddp", "--trainer.num_nodes", "2"]
    with caplog.at_level("INFO"):
        RunCLI(words).instantiate()
    assert "waits for the processes of all 2 nodes at 10.0.0.1:29400" in caplog.text
