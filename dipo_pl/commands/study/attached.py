"""Entry point of a study's runs: `dipo-pl` in a process that does not outlive the study that has started it."""

import ctypes
import os
import runpy
import signal
import sys

# Environment variable with the id of the study's process.
STUDY = "DIPO_PL_STUDY"
_PR_SET_PDEATHSIG = 1


def end_with_study() -> None:
    """Have the system kill this process when its parent ends, where it can (Linux); a killed run resumes later."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The study may have ended before; ranks that a run starts have another parent.
    if "LOCAL_RANK" not in os.environ and os.environ.get(STUDY) not in (None, str(os.getppid())):
        os._exit(1)


if __name__ == "__main__":
    end_with_study()
    # Like `python -m dipo_pl`, so that ranks, which Lightning starts by the name of the main module, are ordinary ones.
    runpy.run_module("dipo_pl", run_name="__main__", alter_sys=True)
