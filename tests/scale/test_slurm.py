"""Two tasks as srun starts them: a signal to one of them saves, and the same command ends as if there had been none."""

import json
import signal
from pathlib import Path

import forked
from at_step import at
from ranks import run_all

RUN = (
    "fit", "--config", "smoke.yaml", "--trainer.max_epochs", "3", "--data.evaluation_rows", "3", "--samples.rows", "0",
    "--forget_quality.generate_every", "0", "--trainer.num_nodes", "2", "--trainer.strategy", "ddp",
    "--data.batch_size", "4", "--data.global_batch_size", "8",
)  # fmt: skip


def tasks(folder: Path, commands: list[list[str]], code: int = 0) -> list[str]:
    """Return the output of two tasks, on a node each, which end with this code."""
    port, slurm = forked.free_port(), []
    for rank in map(str, range(2)):
        slurm.append({
            "SLURM_NTASKS": "2", "SLURM_PROCID": rank, "SLURM_LOCALID": "0", "SLURM_NODEID": rank,
            "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1",
            "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NODELIST": "127.0.0.1", "MASTER_PORT": port,
        })  # fmt: skip
    return forked.run_ranks(lambda rank: run_all(commands, rank), folder, slurm, codes=(code, code))


def test_a_job_that_is_signalled_and_queued_again_ends_as_one_that_was_not(tmp_path):
    logs = tasks(tmp_path, [[*RUN, *at("Send", number=int(signal.SIGUSR1), rank=1)]], code=138)
    assert "dipo-pl: interrupted by SIGUSR1: the same command resumes the run" in logs[0]
    logs = tasks(tmp_path, [[*RUN], [*RUN, "--name", "straight"]])
    assert "resuming in epoch 1 after 2 batches" in logs[0]
    runs = [tmp_path / "runs" / name for name in ("smoke", "straight")]
    for file in ("metrics.jsonl", "hf/model.safetensors"):
        assert len({(run / file).read_bytes() for run in runs}) == 1
    assert {json.loads((run / "manifest.json").read_text())["world_size"] for run in runs} == {2}
