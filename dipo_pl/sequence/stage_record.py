"""Says in a run's manifest which stage of which sequence it is."""

from collections.abc import Sequence
from typing import Any

from lightning import Callback


class StageRecord(Callback):
    """Gives the manifest its entry `sequence`.

    Args:
        name: of the sequence.
        mode: see RequestsFile.
        requests: all up to this stage's.
        after: when the stage that this one starts from ended; None where it starts from the target.
    """

    def __init__(self, name: str, mode: str, requests: Sequence[str], after: str | None = None) -> None:
        self.record: dict[str, Any] = {
            "name": name,
            "mode": mode,
            "stage": len(requests),
            "requests": list(requests),
            "after": after,
        }
