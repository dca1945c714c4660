"""`make torture`: a short run is killed, interrupted, starved of disk and damaged at random, and must end as if not.

Each fault hits the same command again, in a process of its own, until the run is finished; then weights, optimizer,
metrics.jsonl, every evaluation, the stored reference and the exported model must be bitwise those of an uninterrupted
run, and a new run begins.
"""

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from dipo_pl.cli.run import run
from dipo_pl.storage.checkpoints import AtomicCheckpointIO

torch.set_num_threads(1)

# Dropout, evaluations within epochs, a checkpoint a step, a best one, stored states: all that can be torn.
COMMAND = (
    "fit", "--config", "smoke.yaml", "--config", "stored_states.yaml", "--trainer.max_epochs", "3",
    "--model.policy.config", "{model_type: gpt2, n_embd: 32, n_layer: 2, n_head: 2, n_positions: 128}",
    "--model.policy.vocab_size", "300", "--model.reference.batch_tokens", "256", "--data.evaluation_rows", "3",
    "--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", "2",
    "--forget_quality.generate_every", "2", "--forget_quality.max_new_tokens", "8",
    "--last_checkpoint.every_n_steps", "1", "--checkpoint.monitor", "retain_probability", "--checkpoint.mode", "max",
    "--trainer.enable_progress_bar", "false",
)  # fmt: skip
# On one process as well: what is torn is the folder.
IN_SHARDS = ("--config", "sharded_checkpoints.yaml")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
FINISHED = 0
Command = tuple[str, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--shards", action="store_true", help="checkpoints are folders (fsdp2)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    print(f"seed {given.seed}")
    command = (*COMMAND, *IN_SHARDS) if given.shards else COMMAND
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        started = time.monotonic()
        assert _ended(_start("whole", command)) == FINISHED, Path("whole.log").read_text()
        length = time.monotonic() - started
        print(f"uninterrupted: {length:.1f} s")
        faults: Counter[str] = Counter()
        number = 0
        while faults.total() < given.faults:
            number += 1
            before = faults.total()
            _torture(f"torn-{number}", command, length, chance, faults)
            differences = _differences(Path("runs/whole"), Path(f"runs/torn-{number}"))
            if differences:
                print(f"torn-{number} differs in {', '.join(differences)}")
                return 1
            print(f"torn-{number}: equal after {faults.total() - before} faults")
    print(f"{faults.total()} faults, {number} runs, all equal: {dict(faults)}")
    return 0


def _torture(name: str, command: Command, length: float, chance: random.Random, faults: Counter[str]) -> None:
    """Until the run is finished."""
    while True:
        kind = chance.choices(("signal", "disk", "damage"), (7, 2, 1))[0]
        limit = chance.randrange(1_000, 300_000) if kind == "disk" else None
        if kind == "damage":
            kind = _damage(Path(f"runs/{name}/checkpoints"), chance)
        process = _start(name, command, limit)
        if kind != "signal":
            code = _ended(process)
            if code == FINISHED:
                if kind == "damaged newest":
                    faults[kind] += 1
                    assert "resuming from the previous checkpoint" in Path(f"{name}.log").read_text()
                return
            assert limit is not None, Path(f"{name}.log").read_text()
            _check_line(name, "cannot write")
            faults["disk full"] += 1
            continue
        sent = chance.choices(SIGNALS, (7, 1, 1, 1))[0]
        time.sleep(chance.uniform(0, length))
        os.kill(process, sent)
        code = _ended(process)
        if code == FINISHED:
            return
        assert code in (-sent, 128 + sent), (sent, code, Path(f"{name}.log").read_text())
        faults[sent.name] += 1


def _damage(folder: Path, chance: random.Random) -> str:
    """A byte of the newest checkpoint is another one, or its end is missing; the one before stays whole."""
    last = folder / "last.ckpt"
    if not (last.exists() and (folder / "previous.ckpt").exists()):
        return "nothing"
    if last.is_dir():
        last = chance.choice(sorted(last.iterdir()))
    content = bytearray(last.read_bytes())
    if chance.random() < 0.5:
        content = content[: chance.randrange(len(content))]
    else:
        content[chance.randrange(len(content) // 4, len(content) // 2)] ^= 0xFF
    last.write_bytes(content)
    return "damaged newest"


def _check_line(name: str, words: str) -> None:
    lines = [each for each in Path(f"{name}.log").read_text().splitlines() if each.startswith("dipo-pl: ")]
    errors = [each for each in lines if each.startswith(("dipo-pl: error", "dipo-pl: failed"))]
    assert len(errors) == 1, lines
    assert words in errors[0], lines


def _start(name: str, command: Command, limit: int | None = None) -> int:
    """The command in a process of its own, a copy of this one: what takes seconds is to import torch."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        log = os.open(f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["dipo-pl"]
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        code = run([*command, "--name", name])
    finally:
        sys.stderr.flush()
        os._exit(code)


def _ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _differences(one: Path, other: Path) -> list[str]:
    different = []
    for part in ("evaluation", "hf", "reference"):
        names = [{each.name for each in (run / part).iterdir()} for run in (one, other)]
        if names[0] != names[1]:
            different.append(f"the files of {part} ({names[0] ^ names[1]})")
    files = [each for part in ("evaluation", "hf", "reference") for each in (one / part).iterdir()]
    for path in (*files, one / "metrics.jsonl"):
        theirs = other / path.relative_to(one)
        if not theirs.is_file() or path.read_bytes() != theirs.read_bytes():
            different.append(str(path.relative_to(one)))
    states = [AtomicCheckpointIO().load_checkpoint(run / "checkpoints" / "last.ckpt") for run in (one, other)]
    for each in states:
        # How often a batch was measured, which is more often where a measurement was made again.
        del each["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
        each |= {f"loops.{name}": progress for name, progress in each["loops"]["fit_loop"].items()}
    keys = ["state_dict", "optimizer_states", "lr_schedulers", "global_step"]
    keys += [name for name in states[0] if name.startswith("loops.")]
    return different + [key for key in keys if not _same(*(each[key] for each in states))]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


if __name__ == "__main__":
    sys.exit(main())
