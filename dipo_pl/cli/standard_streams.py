"""Standard output and error whose reader may stop reading, as `dipo-pl report ... | head` does."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# What writing fails with once the reader of a pipe, or the terminal, has gone.
GONE = (errno.EPIPE, errno.EIO)


class PatientStream:
    """Stream that drops what is written after its reader has gone, so that a command goes on without it.

    A run must not end because the terminal window that watched it was closed.

    Args:
        stream: what is written to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, if it is still read; return its length."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Pass on what has been written."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Have all further output go nowhere; raise the error again if the reader is still there."""
        if error.errno not in GONE:
            raise error
        # Python flushes the stream once more at its end, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def patient_streams() -> Iterator[None]:
    """Replace standard output and error by patient ones, and flush them at the end."""
    before = sys.stdout, sys.stderr
    # None where a process has no standard output, which print leaves alone.
    streams = [each and PatientStream(each) for each in before]
    sys.stdout, sys.stderr = streams  # type: ignore[assignment]
    try:
        yield
    finally:
        for each in filter(None, streams):
            each.flush()
        sys.stdout, sys.stderr = before
