"""SIGINT, SIGTERM and SIGUSR1 end a run where it can be gone on with; a second one ends it at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Schedulers send SIGTERM before a job is pre-empted, or with `sbatch --signal=USR1@90` SIGUSR1.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(SystemExit):
    """A signal has ended the run; the code is 128 and its number, as a shell has it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)

    def __str__(self) -> str:
        return f"interrupted by {self.signal.name}"


class Interruption:
    """What has become of a signal. Signals are the process's, and so there is one of these.

    Attributes:
        received: the signal that asks the run to end.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._deferred = False
        self._process = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals from whoever had them, Python's Ctrl-C among them."""
        self.received, self._deferred, self._process = None, False, os.getpid()
        # Only a main thread may, and only it is interrupted.
        main = threading.current_thread() is threading.main_thread()
        before = {each: signal.signal(each, self._receive) for each in SIGNALS} if main else {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def defer(self) -> None:
        """From here on a signal waits until someone asks for `received`."""
        self._deferred = True

    def allow(self) -> None:
        """From here on a signal ends what is done at once; one that waits does now.

        Raises:
            Interrupted: here, and anywhere later in the main thread.
        """
        self._deferred = False
        if self.received is not None:
            raise Interrupted(self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # A worker of a data loader has this handler from its parent, which Ctrl-C reaches as well.
        if os.getpid() != self._process:
            return
        self.received = signal.Signals(number)
        # Without Python, which does not come to it while it waits for another process.
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if not self._deferred:
            raise Interrupted(number)


interruption = Interruption()
