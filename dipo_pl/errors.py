"""Errors that end a run early, each printed as one line by the command line, and the checks of arguments that raise them."""

import math
import textwrap
from collections.abc import Iterator
from pathlib import Path

# What errors say of a loss, a gradient or an answer's loss that ends a run.
NOT_FINITE = "not finite"


class InputError(ValueError):
    """Error of wrong input: the message names the argument or file, shows the value and says what to do."""


class TrainingError(RuntimeError):
    """Error that ends a run, such as a loss that is not finite; files that were written before stay complete."""


class WriteError(TrainingError):
    """Error of a file or folder that cannot be written; the old one stays.

    Attributes:
        strerror: message of the operating system.
    """

    def __init__(self, path: Path, cause: OSError) -> None:
        self.strerror = cause.strerror
        self._made_of = path, cause
        super().__init__(
            f"cannot write {path} ({self.strerror}): free disk space or change the permissions, and give the same command "
            "again; an earlier version of it is unchanged"
        )

    def __reduce__(self) -> tuple[type["WriteError"], tuple[Path, OSError]]:
        # Errors are sent to other ranks.
        return WriteError, self._made_of


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, each once: an error that is raised twice, such as by two threads, may cause itself."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def short_message(error: Exception) -> str:
    """Return the message of a library on one line, shortened."""
    return textwrap.shorten(f"{error}", 400, placeholder=" ...") or type(error).__name__


def check_objects(owner: str, **arguments: object) -> None:
    """Refuse a string or a class where an instance is expected, such as `prompt="QuestionAnswer"` in Python.

    Args:
        owner: what the arguments belong to, as a config names it.
        arguments: the arguments by name.

    Raises:
        InputError: one of them is a string or a class.
    """
    for name, value in arguments.items():
        if isinstance(value, str | type):
            example = value if isinstance(value, str) else value.__name__
            raise InputError(
                f"{owner}.{name} must be an instance: pass an object such as {example}() (got {value!r})"
            )


def check_count(name: str, value: int | None, minimum: int = 1) -> None:
    """Refuse a count below its minimum; None passes, for arguments where null means no limit.

    Raises:
        InputError: `value` is below `minimum`.
    """
    if value is not None and value < minimum:
        raise InputError(f"{name} must be at least {minimum} (got {value})")


def check_number(
    name: str,
    value: float | None,
    above: float | None = None,
    minimum: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
) -> None:
    """Refuse a number that is not finite or outside of its range; None passes.

    Raises:
        InputError: `value` is NaN, infinite, <= `above`, < `minimum`, >= `below` or > `maximum`.
    """
    if value is None:
        return
    bounds = {">": above, ">=": minimum, "<": below, "<=": maximum}
    within = (
        math.isfinite(value)
        and (above is None or value > above)
        and (minimum is None or value >= minimum)
        and (below is None or value < below)
        and (maximum is None or value <= maximum)
    )
    if not within:
        stated = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None)
        raise InputError(f"{name} must be a finite number{' ' + stated if stated else ''} (got {value})")


def check_share(name: str, value: float | None, zero: bool = False, one: bool = True) -> None:
    """Refuse a number that is not a share of a whole; None passes.

    Args:
        name: the argument, as a config names it.
        value: the share.
        zero: allow 0.
        one: allow 1.

    Raises:
        InputError: `value` is outside of the interval.
    """
    if value is None:
        return
    if not (0 < value < 1 or (zero and value == 0) or (one and value == 1)):
        interval = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
        raise InputError(f"{name} must be a share in {interval} (got {value})")
