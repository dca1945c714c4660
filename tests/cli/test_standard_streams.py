"""`dipo-pl COMMAND | head`: a reader that stops reading is no error, and the command ends as if it were read."""

import errno
import os
import pty
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dipo_pl.callbacks.status_line import StatusLine
from dipo_pl.cli.standard_streams import PatientStream


@pytest.mark.parametrize("command", [["configs"], ["--help"], ["report", "--help"], ["nothing"]])
@pytest.mark.parametrize("joined", [False, True])
def test_a_reader_that_stops_reading_is_no_error(command, joined):
    err = subprocess.STDOUT if joined else subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-m", "dipo_pl", *command], stdout=subprocess.PIPE, stderr=err
    ) as process:
        process.stdout.close()
        said = b"" if joined else process.stderr.read()
        # An error keeps its exit code, which is not 120, that of output which Python could not flush.
        assert process.wait(60) == (2 if command == ["nothing"] else 0)
    assert b"Broken" not in said
    assert b"Traceback" not in said


def test_a_terminal_that_is_closed_is_no_error(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    leader, follower = pty.openpty()
    stream = PatientStream(os.fdopen(follower, "w", buffering=1))
    monkeypatch.setattr(sys, "stderr", stream)
    line = StatusLine(lambda columns: "drawn"[:columns])
    line.open()
    print("read", file=sys.stderr)
    os.close(leader)
    for _ in range(2):
        print("to nobody", file=sys.stderr)
        stream.flush()
    line.close()


def test_another_error_of_writing_is_one():
    def full(text=""):
        raise OSError(errno.ENOSPC, "No space left on device")

    stream = PatientStream(SimpleNamespace(write=full, flush=full))
    for act in (lambda: stream.write("more"), stream.flush):
        with pytest.raises(OSError, match="No space left"):
            act()


def test_a_process_without_standard_output_ends_well():
    command = f"exec {sys.executable} -m dipo_pl --version >&-"
    assert subprocess.run(command, shell=True, stderr=subprocess.PIPE).returncode == 0
