"""Seconds of parts that call each other."""

from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any


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
