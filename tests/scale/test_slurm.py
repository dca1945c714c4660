"""Two tasks as srun starts them: a signal to one of them saves, and the same command ends as if there had been none."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

SENDER = """
import os
import signal

from lightning import Callback


class Send(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 4 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
"""
RUN = (
    "fit", "--config", "smoke.yaml", "--trainer.max_epochs", "3", "--data.evaluation_rows", "3", "--samples.rows", "0",
    "--forget_quality.generate_every", "0", "--trainer.num_nodes", "2", "--trainer.strategy", "ddp",
    "--data.batch_size", "4", "--data.global_batch_size", "8",
)  # fmt: skip


def tasks(folder: Path, commands: list[list[str]]) -> tuple[list[int], list[str]]:
    """Exit codes and output of two tasks, on a node each."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    script = [sys.executable, str(Path(__file__).with_name("ranks.py")), json.dumps(commands)]
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    started = []
    for rank in range(2):
        slurm = {
            "SLURM_NTASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": "0", "SLURM_NODEID": str(rank),
            "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1",
            "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NODELIST": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        environment = os.environ | slurm | {"PYTHONPATH": path}
        with (folder / f"task{rank}.log").open("w") as log:
            started.append(subprocess.Popen(script, cwd=folder, env=environment, stdout=log, stderr=log))
    try:
        codes = [each.wait(timeout=120) for each in started]
    finally:
        for each in started:
            each.kill()
    return codes, [(folder / f"task{rank}.log").read_text() for rank in range(2)]


def test_a_job_that_is_signalled_and_queued_again_ends_as_one_that_was_not(tmp_path):
    (tmp_path / "sender.py").write_text(SENDER)
    codes, logs = tasks(tmp_path, [[*RUN, "--trainer.callbacks+", "sender.Send"]])
    assert codes == [138, 138], logs
    assert "dipo-pl: interrupted by SIGUSR1: the same command resumes the run" in logs[0]
    codes, logs = tasks(tmp_path, [[*RUN], [*RUN, "--name", "straight"]])
    assert codes == [0, 0], logs
    assert "resuming in epoch 1 after 2 batches" in logs[0]
    runs = [tmp_path / "runs" / name for name in ("smoke", "straight")]
    for file in ("metrics.jsonl", "hf/model.safetensors"):
        assert len({(run / file).read_bytes() for run in runs}) == 1
    assert {json.loads((run / "manifest.json").read_text())["world_size"] for run in runs} == {2}
