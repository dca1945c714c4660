"""Seconds of parts that call each other."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch


class Clock:
    """Own time of nested parts."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.taken: Counter[str] = Counter()
        self.within = [0.0]

    @contextmanager
    def part(self, name: str) -> Any:
        start = self.now()
        self.within.append(0.0)
        try:
            yield
        finally:
            whole = self.now() - start
            self.taken[name] += whole - self.within.pop()
            self.within[-1] += whole

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*arguments, **options)

        return wrapped

    @contextmanager
    def timing(self, functions: Iterable[tuple[Any, str, str]]) -> Iterator[None]:
        """Time functions, each given by its owner, its name and its part."""
        with ExitStack() as changes:
            for owner, name, part in functions:
                changes.enter_context(patch.object(owner, name, self.timed(part, getattr(owner, name))))
            yield

    def lines(self) -> str:
        """Return a line for each part, the longest first."""
        return "\n".join(f"{part:45}{taken:8.1f}" for part, taken in self.taken.most_common())
