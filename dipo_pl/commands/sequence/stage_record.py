"""Callback that records in a run's manifest which stage of which sequence it is."""

from collections.abc import Sequence
from typing import Any

from lightning import LightningModule, Trainer

from dipo_pl.callbacks.manifest import ManifestEntry


class StageRecord(ManifestEntry):
    """Callback that adds the entry `sequence` to the manifest.

    Args:
        name: name of the sequence.
        mode: see `RequestsFile`.
        requests: all requests up to the stage's.
        start: fingerprint of the weights that the stage starts from, by `weights_sample`; None if they are in no folder.
        retain_only: the same of the retain-only model.
    """

    entry = "sequence"

    def __init__(
        self, name: str, mode: str, requests: Sequence[str], start: str | None, retain_only: str | None
    ) -> None:
        self._record: dict[str, Any] = {"name": name, "mode": mode, "stage": len(requests)}
        self._record |= {"requests": list(requests), "start": start, "retain_only": retain_only}

    def record(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the stage's place in its sequence."""
        return self._record
