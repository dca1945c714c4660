"""Callbacks that disturb a run at one of its steps; `at` writes the options that add one to a command.

`kill` and `killed_and_gone_on` kill a run there.
"""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from shutil import disk_usage
from typing import Any

from lightning import Callback

from dipo_pl.storage import sharded_checkpoint


def at(name: str, **options: object) -> list[str]:
    words = [word for key, value in options.items() for word in (f"--trainer.callbacks.{key}", str(value))]
    return ["--trainer.callbacks+", f"at_step.{name}", *words]


def kill(process: Any, words: Sequence[str], **options: object) -> None:
    """Kill the run of a command, see `Send`."""
    ended = process(*words, *at("Send", **options))
    assert ended.code == -signal.SIGKILL, ended.err


def killed_and_gone_on(cli: Any, process: Any, words: Sequence[str], **options: object) -> Any:
    """Kill the run of a command and give the command again; return how that ended."""
    kill(process, words, **options)
    ended = cli(*words)
    assert ended.code == 0, ended.err
    return ended


class AtStep(Callback):
    """Acts once, in a hook, on one rank or on all; the file `acted` tells when."""

    def __init__(
        self,
        hook: str = "on_train_batch_start",
        step: int = 4,
        rank: int | None = None,
        sanity: bool = False,
    ) -> None:
        def act(trainer: Any, *_: Any, **__: Any) -> None:
            is_here = rank is None or trainer.global_rank == rank
            if (
                trainer.global_step == step
                and trainer.sanity_checking == sanity
                and is_here
                and not self.has_acted
            ):
                self.has_acted = True
                Path("acted").write_text(str(time.time()))
                self.act(trainer)

        self.has_acted = False
        setattr(self, hook, act)

    def act(self, trainer: Any) -> None:
        raise NotImplementedError


class Raise(AtStep):
    def act(self, trainer: Any) -> None:
        raise ValueError("the first cause")


class Send(AtStep):
    def __init__(self, number: int = int(signal.SIGKILL), times: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.number, self.times = number, times

    def act(self, trainer: Any) -> None:
        if trainer.logger is not None:
            trainer.logger.experiment.flush()
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)


class Wait(AtStep):
    def act(self, trainer: Any) -> None:
        time.sleep(600)


class Starve(AtStep):
    def act(self, trainer: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


class FillDisk(AtStep):
    def act(self, trainer: Any) -> None:
        Path("runs/ballast").write_bytes(bytes(disk_usage("runs").free))


class LockDisk(AtStep):
    """From now on the disk can only be read."""

    def act(self, trainer: Any) -> None:
        for words in (["--bind", "runs", "runs"], ["-o", "remount,bind,ro", "runs"]):
            subprocess.run(["mount", *words], check=True)


class KillAmongShards(AtStep):
    """Kills the process when a shard is written and the rest of the checkpoint is not."""

    def act(self, trainer: Any) -> None:
        def killed(path: Path) -> int:
            assert path.stat().st_size
            assert not (path.parent / "checkpoint.pt").exists()
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        sharded_checkpoint._checksum = killed
