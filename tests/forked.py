"""Processes that are copies of the test's own: one that imports torch and Lightning anew takes five seconds to start."""

import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import torch


def fork(
    run: Callable[[], object],
    out: Path,
    err: Path | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> int:
    """Start `run` in a child process and return the child's id.

    Args:
        run: its result is the exit code if it is a number, and else that is 0.
        out: file of the standard output.
        err: file of the standard error; null is `out`.
        folder: working directory.
        environment: added to the parent's.
        arguments: of `dipo-pl`, with which Lightning starts further processes.
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
        for logger in (logging.root, *logging.root.manager.loggerDict.values()):
            for handler in getattr(logger, "handlers", []):
                if type(handler) is logging.StreamHandler:
                    handler.stream = sys.stderr
        if folder is not None:
            os.chdir(folder)
        os.environ.update(environment or {})
        sys.argv = ["dipo-pl", *arguments]
        sys.modules["__main__"].__spec__ = find_spec("dipo_pl.__main__")
        ended = run()
        code = ended if isinstance(ended, int) else 0
    except KeyboardInterrupt:
        # Before the command listens.
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(
    words: Sequence[str],
    out: Path,
    err: Path | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Start `dipo-pl ...` in a child process and return the child's id; see `fork`."""
    from dipo_pl.__main__ import main

    return fork(lambda: main([*words]), out, err, folder, environment, words)


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


def nodes(count: int = 2) -> list[dict[str, str]]:
    """Return the environments that torchrun gives to one process on each of `count` machines."""
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": "1",
        "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none",
    }  # fmt: skip
    return [shared | {"RANK": str(rank), "GROUP_RANK": str(rank)} for rank in range(count)]


def run_ranks(
    run: Callable[[int], object],
    folder: Path,
    environments: Sequence[Mapping[str, str]] = ({}, {}),
    timeout: float = 120,
    codes: Sequence[int] = (0, 0),
) -> list[str]:
    """Run `run(rank)` in one child for each environment; return what each wrote, also kept in rank0.log, ...

    Raises:
        AssertionError: a rank has not ended in time with its code.
    """
    logs = [folder / f"rank{rank}.log" for rank in range(len(environments))]
    deadline = time.monotonic() + timeout
    children = [
        fork(lambda rank=rank: run(rank), log, folder=folder, environment=environment)
        for rank, (log, environment) in enumerate(zip(logs, environments, strict=True))
    ]
    ended = [wait(each, max(deadline - time.monotonic(), 0.1)) for each in children]
    written = [each.read_text() for each in logs]
    assert ended == list(codes), "\n".join(each[-3000:] for each in written)
    return written


@contextmanager
def gloo(folder: Path, rank: int, world_size: int = 2) -> Iterator[None]:
    """Connect the children of `run_ranks`, which end when one of them does not answer."""
    init, timeout = f"file://{folder}/gloo", timedelta(seconds=60)
    torch.distributed.init_process_group(
        "gloo", init_method=init, rank=rank, world_size=world_size, timeout=timeout
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
