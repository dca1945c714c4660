"""Checkpoints that are whole or absent."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from dipo_pl.run_folder import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, renames.

    Lightning's own writes its temporary file to $TMPDIR; where that is another filesystem the move is a
    copy, and a kill in its midst leaves half a checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        # Through a file of ours, torch tells why a write has failed.
        with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Tensors and plain values alone, whatever is asked for: anything else could run code as it is read."""
        checkpoint: dict[str, Any] = torch.load(path, map_location or "cpu", weights_only=True)
        return checkpoint
