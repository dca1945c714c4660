"""The processes of a run that Lightning has launched on this machine: they end together, and the first cause is said."""

import os
import signal
import subprocess
import sys
import threading
import time

from lightning import Trainer
from torch.distributed import DistError

from dipo_pl.errors import causes
from dipo_pl.private_names import observe_processes, subprocess_launcher

Launched = subprocess.Popen[bytes]
# Names the first process to those that it launches.
FIRST = "DIPO_PL_FIRST_PROCESS"
# That of a process which only lost the connection to another one, and has nothing to say.
CONSEQUENCE = 3
LOST = "the connection to another process was lost, which says why, or whose end the launcher tells"
# Seconds: until a process that is not the first one speaks, until others are waited for, and until one that waits in
# a collective is ended from outside.
LATER, PATIENCE, GRACE = 3.0, 10.0, 15.0


class Processes:
    """Of a trainer; without others there is nothing to do.

    What fails in all of them is said by the first one, which then ends the others: they wait a moment before they
    speak. One that has lost the connection to another says nothing, unless that one could not.
    """

    def __init__(self, trainer: Trainer | None) -> None:
        self._launcher = None if trainer is None else subprocess_launcher(trainer.strategy)
        self._parent = os.getppid()
        # Where another launcher made the processes, torchrun say, it ends them as well.
        self._is_first = trainer is None or trainer.is_global_zero
        self._are_several = trainer is not None and trainer.world_size > 1
        # Whatever else the first process has started has its surroundings too, but no further rank.
        further = int(os.environ.get("LOCAL_RANK", "0")) > 0
        self.is_launched = further and os.environ.get(FIRST) == str(self._parent)

    @property
    def _launched(self) -> list[Launched]:
        return [] if self._launcher is None else self._launcher.procs

    def watch(self) -> None:
        """From now on, in threads: none of them outlives the first one, or one that crashed, for long."""
        if self._launcher is not None:
            os.environ[FIRST] = str(os.getpid())
            # Lightning's ends this process as well, at once and by SIGKILL, before it can say anything.
            observe_processes(_watch_launched)
        if self.is_launched:
            threading.Thread(target=self._watch_first, daemon=True).start()

    def _watch_first(self) -> None:
        while os.getppid() == self._parent:
            time.sleep(1)
        time.sleep(GRACE)
        os._exit(CONSEQUENCE)

    def cause(self, error: BaseException) -> tuple[str | None, int] | None:
        """Of a lost connection: what to say of the process that ended first, or None where it did, and the exit code.

        None for another error: this process is the first. The launched ones are ended.
        """
        if not _is_consequence(error):
            self.end()
            if not self._is_first:
                time.sleep(LATER)
            return None
        if self.is_launched:
            orphaned = os.getppid() != self._parent and os.environ["LOCAL_RANK"] == "1"
            return ("rank 0 was killed" if orphaned else None), CONSEQUENCE
        deadline = time.monotonic() + PATIENCE
        while (ended := _ended(self._launched)) is None and self._launched and time.monotonic() < deadline:
            time.sleep(0.1)
        self.end()
        if ended is not None:
            return _account(*ended)
        return (LOST, CONSEQUENCE) if self._are_several else None

    def end(self) -> None:
        """Ends what this process has launched."""
        for each in self._launched:
            each.kill()
            each.wait()

    def wait(self) -> None:
        """Lets them end by themselves, and ends those that do not."""
        for each in self._launched:
            try:
                each.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                break
        self.end()


def _watch_launched(launched: list[Launched]) -> None:
    def watch() -> None:
        while any(each.poll() is None for each in launched) and _ended(launched) is None:
            time.sleep(1)
        ended = _ended(launched)
        if ended is None:
            return
        time.sleep(GRACE)
        line, code = _account(*ended)
        if line is not None:
            print(f"dipo-pl: failed: {line}", file=sys.stderr, flush=True)
        for each in launched:
            each.kill()
        os._exit(code)

    threading.Thread(target=watch, daemon=True).start()


def _ended(launched: list[Launched]) -> tuple[int, int] | None:
    """Rank and exit code of one that ended first: not for another's sake."""
    codes = [(rank, each.poll()) for rank, each in enumerate(launched, start=1)]
    return next(((rank, code) for rank, code in codes if code not in (None, 0, CONSEQUENCE)), None)


def _account(rank: int, code: int) -> tuple[str | None, int]:
    """What is to be said of it, if it has not done that itself, and the exit code of the whole."""
    known = {each.value: each.name for each in signal.Signals}
    if code < 0:
        name = known.get(-code, f"signal {-code}")
        why = " (for lack of memory, say)" if name == "SIGKILL" else ""
        return f"the process of local rank {rank} was ended by {name}{why}", 1
    if code - 128 in known:
        return f"the process of local rank {rank} was interrupted by {known[code - 128]}", code
    return (None, code) if code <= 2 else (f"the process of local rank {rank} ended with code {code}", 1)


def _is_consequence(error: BaseException) -> bool:
    return any(isinstance(each, DistError) or "gloo/transport" in str(each) for each in causes(error))
