"""The ways a run ends early; the command line prints each as one line."""

from collections.abc import Iterator
from pathlib import Path


class InputError(ValueError):
    """What the user gave cannot be used: the message names the thing, shows the value, says what to do."""


class TrainingError(RuntimeError):
    """Training cannot go on (a loss that is not finite, say); what was saved before stays whole."""


class WriteError(TrainingError):
    """A file or folder cannot be written; what stood there before still does.

    Attributes:
        strerror: why, in the system's words.
    """

    def __init__(self, path: Path, cause: OSError) -> None:
        self.strerror = cause.strerror
        self._made_of = path, cause
        super().__init__(
            f"cannot write {path} ({self.strerror}): what was there before is whole; make room or allow it, and give the "
            "same command again"
        )

    def __reduce__(self) -> tuple[type["WriteError"], tuple[Path, OSError]]:
        # One rank tells it to the others.
        return WriteError, self._made_of


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came of, each once: what is raised a second time, by another thread say, may come of itself."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
