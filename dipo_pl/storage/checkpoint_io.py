"""Checkpoints that are whole or absent."""

from pathlib import Path
from pickle import UnpicklingError
from shutil import rmtree
from typing import Any
from zipfile import ZipFile

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from dipo_pl.errors import InputError
from dipo_pl.storage.run_folder import replacing
from dipo_pl.storage.sharded_checkpoint import REST, check_shards, load_sharded, with_whole_tensors


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, renames.

    Lightning's own writes its temporary file to $TMPDIR; where that is another filesystem the move is a
    copy, and a kill in its midst leaves half a checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        # Shards of the same name, of a run that was cut short, give way.
        if Path(path).is_dir():
            rmtree(path)
        # Through a file of ours, torch tells why a write has failed.
        with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Tensors and plain values alone, whatever is asked for: anything else could run code as it is read."""
        if Path(path).is_dir():
            return with_whole_tensors(load_sharded(Path(path)))
        checkpoint: dict[str, Any] = torch.load(path, map_location or "cpu", weights_only=True)
        return checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, mapped rather than read; of one in shards, a StoredTensor for each tensor that was divided."""
    if path.is_dir():
        return load_sharded(path)
    checkpoint: dict[str, Any] = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
    return checkpoint


def check_checkpoint(path: Path, advice: str, thoroughly: bool = True) -> None:
    """
    Args:
        advice: what to do where it cannot be used.
        thoroughly: read all of it, and compare it with its checksums.

    Raises:
        InputError: it is no checkpoint of a training, or damaged; or it is more than tensors and plain values, which
            could be code.
    """
    try:
        content = read_checkpoint(path)
        content["loops"]["fit_loop"], content["state_dict"], content["global_step"]
        if thoroughly:
            _check_archive(path / REST if path.is_dir() else path)
            if path.is_dir():
                check_shards(path)
    except Exception as error:
        # torch's own words advise to load it all the same.
        unsafe = isinstance(error, UnpicklingError)
        why = "it holds more than tensors and plain values, which could be code" if unsafe else str(error)
        why = why or type(error).__name__
        raise InputError(
            f"cannot read the checkpoint {path} ({' '.join(why.split())[:200]}): {advice}"
        ) from error


def _check_archive(path: Path) -> None:
    # torch does not compare what it reads with the checksums that it wrote.
    with ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} is damaged")
