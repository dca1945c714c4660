"""A process of its own for each measurement."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar, cast

T = TypeVar("T")

# Forked from a server that has imported these, a process starts in no time and still computes alone.
FORKSERVER = get_context("forkserver")
FORKSERVER.set_forkserver_preload(["transformers.models.llama.modeling_llama", "dipo_pl.modules.unlearning"])


def in_process(function: Callable[..., T], *arguments: Any) -> T:
    """The function's value in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=FORKSERVER) as process:
        return process.submit(function, *arguments).result()


def in_time(limit: float, function: Callable[..., T], *arguments: Any) -> T:
    """The same, with a process that is killed after `limit` seconds.

    Raises:
        TimeoutError: it has not ended by then.
        EOFError: something else killed it.
    """
    receiver, sender = FORKSERVER.Pipe(duplex=False)
    process = FORKSERVER.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            raise TimeoutError(f"it did not end in {limit:.0f} s")
        result = receiver.recv()
    finally:
        process.kill()
        # Its memory is free for the next one then.
        process.join()
    if isinstance(result, Exception):
        raise result
    return cast(T, result)


def _send(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send(function(*arguments))
    except Exception as error:
        sender.send(error)
