"""A terminal of some columns: what a command shows on it, and what stays."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import forked
from lightning import Callback


class Screen:
    """Lines that do not scroll off; wraps, and knows what the project writes: \\r, \\n and erasing to the end of a line."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines = [""]
        self.column = 0

    def write(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[\d;]*[A-Za-z]|[^\x1b]", text):
            if part == "\x1b[K":
                self.lines[-1] = self.lines[-1][: self.column]
            elif part == "\r":
                self.column = 0
            elif part == "\n":
                self.lines.append("")
                self.column = 0
            else:
                assert len(part) == 1, f"unknown sequence {part!r}"
                if self.column == self.columns:
                    self.lines.append("")
                    self.column = 0
                self.lines[-1] = self.lines[-1][: self.column] + part + self.lines[-1][self.column + 1 :]
                self.column += 1


def on_terminal(
    run: Callable[[], object], folder: Path, columns: int = 80, arguments: Sequence[str] = ()
) -> tuple[int, list[str], list[str]]:
    """Run in a child process on a terminal; return its exit code, the lines that stay, and all that ever were the last."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    path = Path(os.ttyname(follower))
    child = forked.fork(run, path, folder=folder, environment={"TERM": "xterm"}, arguments=arguments)
    # The child has its own copy.
    os.close(follower)
    screen, last, rest = Screen(columns), [], b""
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:
            break
        rest += data
        try:
            text, rest = rest.decode(), b""
        except UnicodeDecodeError:
            continue
        for piece in re.split(r"(?=\r)", text):
            screen.write(piece)
            last.append(screen.lines[-1])
    os.close(leader)
    return forked.wait(child), screen.lines, last


class Talkative(Callback):
    """Writes in each of the ways in which a program writes, while a bar is drawn."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        time.sleep(0.03)
        if batch_idx == 1:
            warnings.warn("warned", stacklevel=1)
            print("printed")
            print("to the error", end=" ", file=sys.stderr)
            time.sleep(0.03)
            print("stream", file=sys.stderr)
