"""Line that says how far an audit has come, with the time that the work of the moment takes yet."""

import time

from dipo_pl.callbacks.pace import Pace, duration
from dipo_pl.callbacks.status_line import StatusLine


class AuditProgress:
    """Progress of an audit over its attacks.

    Args:
        attacks: number of attacks that are tried.
    """

    def __init__(self, attacks: int) -> None:
        self.attacks = attacks
        self.number, self.attack = 0, ""
        self._what, self._pieces, self._done = "", 0, 0
        self._pace, self._since = Pace(), time.monotonic()
        self.line = StatusLine(self.text)

    def next_attack(self, name: str) -> None:
        """Begin an attack."""
        self.number, self.attack, self._what = self.number + 1, name, ""

    def started(self, what: str, pieces: int) -> None:
        """Begin some work of so many pieces."""
        self._what, self._pieces, self._done = what, pieces, 0
        self._pace, self._since = Pace(), time.monotonic()

    def advanced(self, pieces: int) -> None:
        """Count pieces that are done."""
        now = time.monotonic()
        self._pace.add(pieces, now - self._since)
        self._done, self._since = self._done + pieces, now

    def text(self, columns: int | None) -> str:
        """Return the line, cut to a number of columns."""
        parts = [f"attack {self.number} of {self.attacks}: {self.attack}"]
        if self._what:
            parts.append(f"{self._what} {self._done} of {self._pieces}")
            left = self._pace.seconds_for(self._pieces - self._done)
            if left is not None:
                parts.append(f"{duration(left)} left")
        line = ", ".join(parts)
        return line if columns is None else line[:columns]
