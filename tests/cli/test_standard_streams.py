"""`dipo-pl COMMAND | head`: a reader that stops reading is no error, and the command ends as if it were read."""

import subprocess
import sys

import pytest


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


def test_a_process_without_standard_output_ends_well():
    command = f"exec {sys.executable} -m dipo_pl --version >&-"
    assert subprocess.run(command, shell=True, stderr=subprocess.PIPE).returncode == 0
