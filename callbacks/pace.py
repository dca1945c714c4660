"""Speed of repeated work, from which the time that more of it takes is estimated; durations as texts."""

from dataclasses import dataclass
from datetime import timedelta


def duration(seconds: float) -> str:
    """Return a duration for people, as hours:minutes:seconds."""
    return str(timedelta(seconds=round(seconds)))


@dataclass
class Pace:
    """Work of one kind that was done, and the time that it took.

    Attributes:
        done: pieces of work.
        seconds: their time.
    """

    done: float = 0.0
    seconds: float = 0.0

    def add(self, done: float, seconds: float) -> None:
        """Count pieces of work and their time."""
        self.done += done
        self.seconds += seconds

    @property
    def per_second(self) -> float | None:
        """Pieces a second; None if there was none."""
        return self.done / self.seconds if self.done and self.seconds > 0 else None

    def seconds_for(self, count: float) -> float | None:
        """Return the seconds that `count` more pieces take; None if there was none to tell from."""
        if count <= 0:
            return 0.0
        return None if self.per_second is None else count / self.per_second
