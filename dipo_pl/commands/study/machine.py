"""The machine that a study runs on: its name, cores and devices, and how many runs it takes at a time."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import dipo_pl
from dipo_pl.cli.console import say
from dipo_pl.errors import InputError, check_count

# Share of the cores that other processes may use without a warning.
BUSY = 0.5


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def this_machine() -> dict[str, Any]:
    """Return processor, cores, instruction set of PyTorch's kernels, GPUs and system."""
    import torch  # takes seconds

    return {
        "processor": _processor(),
        "cores": cores(),
        "aten_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())],
        "system": platform.system(),
    }


def commit() -> str | None:
    """Return the git commit of this package, with `+changes` if files of it differ; None if it is not in a work tree."""
    folder = Path(dipo_pl.__file__).parent
    # The package may be installed in a folder of another project's work tree.
    if _git(folder, "ls-files", "--error-unmatch", "version.py") is None:
        return None
    head = _git(folder, "rev-parse", "HEAD")
    changed = _git(
        folder, "status", "--porcelain", "--untracked-files=no", "--", ":(top)*.py", ":(top)*.yaml"
    )
    return f"{head}{'+changes' if changed else ''}" if head else None


def devices_of(config: dict[str, Any]) -> tuple[int, list[str]]:
    """Return how many GPUs a run of this resolved configuration takes, and the names of those that there are.

    Returns:
        0 and no names for runs on CPUs.
    """
    import torch  # takes seconds

    trainer = config["trainer"]
    if trainer["accelerator"] == "cpu" or not torch.cuda.is_available():
        return 0, []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(each) for each in range(torch.cuda.device_count())]
    devices = trainer["devices"]
    return int(devices) if str(devices).isdigit() and int(devices) > 0 else len(names), names


def jobs_at_a_time(asked: int | None, threads: int, each: int, devices: int) -> int:
    """Return how many runs go at a time.

    Args:
        asked: --jobs; None takes as many as there is room for.
        threads: threads of a run.
        each: GPUs of a run; 0 on CPUs.
        devices: number of GPUs.

    Raises:
        InputError: there are not enough cores or devices.
    """
    check_count("--jobs", asked)
    check_count("--threads", threads)
    available = cores()
    room = min(available // threads, devices // each) if each else available // threads
    jobs = max(room, 1) if asked is None else asked
    if each and jobs * each > devices:
        raise InputError(
            f"--jobs {jobs} with {each} device(s) a run needs {jobs * each} GPUs, and there are {devices}: give fewer jobs, "
            "or trainer.devices"
        )
    if jobs * threads > available:
        raise InputError(
            f"{jobs} run(s) at a time with {threads} thread(s) each need {jobs * threads} cores, and there are {available}: "
            "give fewer --jobs or --threads (threads that wait for each other make a step several times slower)"
        )
    return jobs


def warn_if_busy() -> None:
    """Print a line if other processes load this machine."""
    load = os.getloadavg()[0]
    if load > BUSY * cores():
        say(
            "warning",
            f"other processes load this machine ({load:.1f} on {cores()} cores in the last minute): runs will take longer, "
            "and their seconds a step cannot be compared",
        )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
