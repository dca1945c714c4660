"""Processes that are copies of the test's own: one that imports torch and Lightning anew takes five seconds to start."""

import importlib
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def fork(
    run: Callable[[], int | None],
    out: Path,
    err: Path | None = None,
    folder: Path | None = None,
    modules: Path | None = None,
    environment: dict[str, str] | None = None,
) -> int:
    """Start `run` in a child process and return the child's id.

    Args:
        run: its result is the exit code; None is 0.
        out: file of the standard output.
        err: file of the standard error; null is `out`.
        folder: working directory.
        modules: folder of modules that the child may import, whatever the parent has imported under their names.
        environment: added to the parent's.
    """
    # The child would wait for ranks that it has no connection to.
    assert not torch.distributed.is_initialized()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        for path, descriptor in ((out, 1), (err, 2)):
            if path is not None:
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        if err is None:
            os.dup2(1, 2)
        sys.stdout, sys.stderr = (open(each, "w", buffering=1, closefd=False) for each in (1, 2))  # noqa: SIM115
        for logger in logging.root.manager.loggerDict.values():
            for handler in getattr(logger, "handlers", []):
                if type(handler) is logging.StreamHandler:
                    handler.stream = sys.stderr
        if folder is not None:
            os.chdir(folder)
        if modules is not None:
            for each in modules.glob("*.py"):
                sys.modules.pop(each.stem, None)
            sys.path.insert(0, str(modules))
            importlib.invalidate_caches()
        os.environ.update(environment or {})
        sys.argv = ["dipo-pl"]
        code = run() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, timeout: float = 120) -> int:
    """Return the exit code of a child, negative for a signal; one that does not end in time is killed."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def free_port() -> str:
    """Return a port of this machine that is not in use."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def run_ranks(
    run: Callable[[int], int | None],
    folder: Path,
    environments: Sequence[dict[str, str]] = ({}, {}),
    timeout: float = 120,
    codes: Sequence[int] = (0, 0),
    modules: Path | None = None,
) -> list[str]:
    """Run `run(rank)` in one child for each environment; return what each wrote, also kept in rank0.log, ...

    Raises:
        AssertionError: a rank has not ended in time with its code.
    """
    logs = [folder / f"rank{rank}.log" for rank in range(len(environments))]
    deadline = time.monotonic() + timeout
    children = [
        fork(lambda rank=rank: run(rank), log, folder=folder, modules=modules, environment=environment)
        for rank, (log, environment) in enumerate(zip(logs, environments, strict=True))
    ]
    ended = [wait(each, max(deadline - time.monotonic(), 0.1)) for each in children]
    written = [each.read_text() for each in logs]
    assert ended == list(codes), "\n".join(each[-3000:] for each in written)
    return written
