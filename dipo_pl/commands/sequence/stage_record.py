"""Says in a run's manifest which stage of which sequence it is."""

from collections.abc import Sequence
from typing import Any

from lightning import LightningModule, Trainer

from dipo_pl.callbacks.manifest import ManifestEntry


class StageRecord(ManifestEntry):
    """Gives the manifest its entry `sequence`.

    Args:
        name: of the sequence.
        mode: see RequestsFile.
        requests: all up to this stage's.
        start: of the weights that it starts from, a fingerprint as `weights_sample` makes it; None where they lie in no
            folder here.
        retain_only: the same of the model that saw none of the requests.
    """

    entry = "sequence"

    def __init__(
        self,
        name: str,
        mode: str,
        requests: Sequence[str],
        start: str | None = None,
        retain_only: str | None = None,
    ) -> None:
        self._record = {
            "name": name,
            "mode": mode,
            "stage": len(requests),
            "requests": list(requests),
            "start": start,
            "retain_only": retain_only,
        }

    def record(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the stage's place in its sequence."""
        return self._record
