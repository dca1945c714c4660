"""Standard output and error whose reader may stop reading, as `dipo-pl report ... | head` does."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


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
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Pass on what has been written."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
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
