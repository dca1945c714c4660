"""Status line at the bottom of a terminal, below all that is printed meanwhile; without a terminal, lines with a time."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any, TextIO, cast

# Seconds between two drawings on a terminal, and between two lines elsewhere.
TICK, PERIOD = 0.2, 25.0
ERASE = "\r\x1b[K"


class StatusLine:
    """Line that a thread of its own writes again and again on standard error while it is open.

    On a terminal it is the last line, and what anyone prints, logs or warns of meanwhile appears above it. Elsewhere a
    line with the time is added every `PERIOD` seconds.

    Args:
        text: returns the line. Given a number of columns, it is as wide at most; None sets no limit.
    """

    def __init__(self, text: Callable[[int | None], str]) -> None:
        self._text = text
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._process = 0
        self._stream: TextIO = sys.stderr
        self._replaced = ExitStack()
        self._drawn = ""
        # True where the last line above has not ended yet.
        self._open_above = False

    def open(self) -> None:
        """Start to write the line, unless it is open."""
        if self._thread is not None:
            return
        self._stream, self._process = sys.stderr, os.getpid()
        self._open_above = False
        self._ended = threading.Event()
        run = self._write_lines
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            self._redirect()
            run = self._draw_again
        self._thread = threading.Thread(target=run, name="status line", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Remove the line from the terminal, and write no more; nothing if it is not open."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        with self._lock:
            self._erase()
        self._replaced.close()

    def above(self, stream: TextIO, text: str) -> int:
        """Write a text to a stream of the terminal, above the line."""
        # A forked process inherits the stream, but not the thread that may hold the lock.
        if os.getpid() != self._process:
            return stream.write(text)
        with self._lock:
            self._erase()
            written = stream.write(text)
            stream.flush()
            if text:
                self._open_above = not text.endswith("\n")
            if not self._ended.is_set():
                self._draw()
        return written

    def _write_lines(self) -> None:
        while not self._ended.wait(PERIOD):
            print(time.strftime("%Y-%m-%d %H:%M:%S"), self._text(None), file=self._stream, flush=True)

    def _draw_again(self) -> None:
        while not self._ended.wait(TICK):
            with self._lock:
                self._draw()

    def _draw(self) -> None:
        if self._open_above:
            return
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            # The terminal was closed.
            return
        # A terminal would wrap a line that fills it.
        text = self._text(columns - 1)
        if text != self._drawn:
            self._stream.write(f"\r{text}{ERASE[1:]}")
            self._stream.flush()
            self._drawn = text

    def _erase(self) -> None:
        if self._drawn:
            self._stream.write(ERASE)
            self._stream.flush()
            self._drawn = ""

    def _redirect(self) -> None:
        """Have all that is written to the terminal appear above the line."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if not stream.isatty():
                continue
            above = cast(TextIO, _Above(stream, self))
            setattr(sys, name, above)
            self._replaced.callback(setattr, sys, name, stream)
            for handler in _handlers_of(stream):
                self._replaced.callback(handler.setStream, handler.stream)
                handler.setStream(above)


class _Above:
    """Stream of a terminal with a status line."""

    def __init__(self, stream: TextIO, line: StatusLine) -> None:
        self._stream = stream
        self._line = line

    def write(self, text: str) -> int:
        return self._line.above(self._stream, text)

    def writelines(self, lines: Iterable[str]) -> None:
        for each in lines:
            self.write(each)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _handlers_of(stream: TextIO) -> list["logging.StreamHandler[TextIO]"]:
    """Return the handlers of all loggers that write to the file of a stream, which they hold since they were made."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = [handler for each in loggers for handler in getattr(each, "handlers", ())]
    # The stream may have been wrapped since.
    return [
        each
        for each in handlers
        if type(each) is logging.StreamHandler and _file_of(each.stream) == stream.fileno()
    ]


def _file_of(stream: TextIO) -> int | None:
    with suppress(AttributeError, OSError, ValueError):
        return stream.fileno()
    return None
