"""Signals that end a run where it can resume: SIGINT, SIGTERM and SIGUSR1; a second one ends it at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Schedulers send SIGTERM before they preempt a job, or SIGUSR1 with `sbatch --signal=USR1@90`.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(SystemExit):
    """Exit after a signal; the code is 128 plus its number, as in a shell.

    Attributes:
        signal: which one.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)

    def __str__(self) -> str:
        return f"interrupted by {self.signal.name}"


class Interruption:
    """State of the process's signals; there is one of these, `interruption`.

    Attributes:
        received: the signal that asks the run to end.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._deferred = False
        self._process = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals; afterwards the former handlers are back, Python's own for Ctrl-C among them."""
        self.received, self._deferred, self._process = None, False, os.getpid()
        # Python sets handlers, and runs them, in the main thread alone.
        main = threading.current_thread() is threading.main_thread()
        before = {each: signal.signal(each, self._receive) for each in SIGNALS} if main else {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def defer(self) -> None:
        """From here on a signal waits until `received` is looked at."""
        self._deferred = True

    def allow(self) -> None:
        """From here on a signal ends the run at once; one that waits does so now.

        Raises:
            Interrupted: here, and later anywhere in the main thread.
        """
        self._deferred = False
        if self.received is not None:
            raise Interrupted(self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # A data loader's worker inherits this handler, and Ctrl-C reaches it too.
        if os.getpid() != self._process:
            return
        self.received = signal.Signals(number)
        # Handled by the system: Python runs no handler while it waits for another process.
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if not self._deferred:
            raise Interrupted(number)


interruption = Interruption()
