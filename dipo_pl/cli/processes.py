"""Ranks of a run that Lightning has launched on this machine: they end together, and the first cause is reported."""

import os
import signal
import threading
import time
from typing import NamedTuple

from lightning import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.distributed import DistError

from dipo_pl.cli.console import say
from dipo_pl.errors import causes
from dipo_pl.private_names import Launched, launched_processes, observe_launched

# Environment variable that tells a launched process which process launched it.
FIRST = "DIPO_PL_FIRST_PROCESS"
# Exit code of a process that only lost the connection to another one and has no cause of its own.
CONSEQUENCE = 3
LOST = "lost connection to another rank; see its error above"
# Seconds: until a rank other than the first reports an error, until the end of other ranks is no longer waited for, and
# until a rank that waits in a collective operation is killed.
LATER, PATIENCE, GRACE = 3.0, 10.0, 15.0


def is_first_process() -> bool:
    """Return whether this process was started first: other ranks run the same command once it has started them."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


class End(NamedTuple):
    """End of a run of several ranks.

    Attributes:
        line: the error line to print; None if a rank has printed it already.
        code: exit code of the command.
    """

    line: str | None
    code: int


class Processes:
    """Ranks that a trainer has launched on this machine; with a single rank there is nothing to do.

    An error that all ranks raise is reported by the first one, which then kills the others: they wait a moment before
    they report. A rank that has lost the connection to another reports nothing, unless the other one could not.

    Args:
        trainer: None before there is one.
    """

    def __init__(self, trainer: Trainer | None) -> None:
        self._trainer = trainer
        self._parent = os.getppid()
        # Where another launcher made the processes, such as torchrun, it ends them as well.
        self._is_first = trainer is None or trainer.is_global_zero
        self._are_several = trainer is not None and trainer.world_size > 1
        # Other processes that the first one has started inherit its environment too, but have no local rank.
        further = int(os.environ.get("LOCAL_RANK", "0")) > 0
        self.is_launched = further and os.environ.get(FIRST) == str(self._parent)

    @property
    def _launched(self) -> Launched:
        return (launched_processes(self._trainer) or []) if self._trainer is not None else []

    def watch(self) -> None:
        """Start threads that end a rank that outlives the first one, or the first one if another has crashed."""
        if self._trainer is not None and launched_processes(self._trainer) is not None:
            os.environ[FIRST] = str(os.getpid())
            observe_launched(_watch_launched)
        if self.is_launched:
            threading.Thread(target=self._watch_first, daemon=True).start()

    def _watch_first(self) -> None:
        while os.getppid() == self._parent:
            time.sleep(1)
        time.sleep(GRACE)
        os._exit(CONSEQUENCE)

    def first_cause(self, error: BaseException) -> End | None:
        """Return how the run ended if `error` only means that the connection to another rank was lost.

        Launched processes are killed.

        Returns:
            None if the error is a cause of its own, which this process has to report.
        """
        if not _is_consequence(error):
            self.end()
            if not self._is_first:
                time.sleep(LATER)
            return None
        if self.is_launched:
            orphaned = os.getppid() != self._parent and os.environ["LOCAL_RANK"] == "1"
            return End("rank 0 was killed" if orphaned else None, CONSEQUENCE)
        deadline = time.monotonic() + PATIENCE
        while (
            (ended := _first_ended(self._launched)) is None and self._launched and time.monotonic() < deadline
        ):
            time.sleep(0.1)
        self.end()
        if ended is not None:
            return ended
        return End(LOST, CONSEQUENCE) if self._are_several else None

    def end(self) -> None:
        """Kill the launched processes."""
        for each in self._launched:
            each.kill()
            each.wait()

    def wait(self) -> None:
        """Wait until the launched processes have ended, and kill those that do not end in time."""
        deadline = time.monotonic() + PATIENCE
        while any(each.poll() is None for each in self._launched) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.end()


def _watch_launched(launched: Launched) -> None:
    def watch() -> None:
        while any(each.poll() is None for each in launched) and _first_ended(launched) is None:
            time.sleep(1)
        ended = _first_ended(launched)
        if ended is None:
            return
        time.sleep(GRACE)
        if ended.line is not None:
            say("failed", ended.line)
        for each in launched:
            each.kill()
        os._exit(ended.code)

    threading.Thread(target=watch, daemon=True).start()


def _first_ended(launched: Launched) -> End | None:
    """Return the end of a process that has failed by itself, not as a consequence of another's failure."""
    codes = [(rank, each.poll()) for rank, each in enumerate(launched, start=1)]
    return next((end_of(rank, code) for rank, code in codes if code not in (None, 0, CONSEQUENCE)), None)


def end_of(rank: int, code: int) -> End:
    """Return what the exit code of a launched process means for the run.

    Args:
        rank: its local rank.
        code: as subprocess.Popen.returncode has it, negative for a signal.
    """
    known = {each.value: each.name for each in signal.Signals}
    if code < 0:
        name = known.get(-code, f"signal {-code}")
        why = " (possibly out of memory)" if name == "SIGKILL" else ""
        return End(f"local rank {rank} was killed by {name}{why}", 1)
    if code - 128 in known:
        return End(f"local rank {rank} was interrupted by {known[code - 128]}", code)
    return End(None, code) if code <= 2 else End(f"local rank {rank} ended with exit code {code}", 1)


def _is_consequence(error: BaseException) -> bool:
    return any(isinstance(each, DistError) or "gloo/transport" in str(each) for each in causes(error))
