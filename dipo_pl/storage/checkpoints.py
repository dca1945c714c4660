"""Checkpoints: written whole or not at all, read without running code, verified before a run resumes from them."""

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZipFile

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from dipo_pl.errors import InputError
from dipo_pl.storage.files import remove, replacing, sync, writing
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.sharded_checkpoint import INDEX, check_shards, full_checkpoint, read_sharded

# Version of what modules and callbacks save, which LanguageModule stores in each checkpoint under this name.
FORMAT_KEY, FORMAT = "dipo_pl_format", 2


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint files that are written beside the target, synced and renamed.

    Lightning's own writes its temporary file to $TMPDIR; on another file system the move is a copy, and a process
    killed in it leaves half a checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write one file; a folder of shards at `path`, of an interrupted run, is removed."""
        if Path(path).is_dir():
            remove(Path(path))
        # Given a file instead of a path, torch reports the operating system's error.
        with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return tensors and plain values, whatever `weights_only` asks for: other objects could run code."""
        if Path(path).is_dir():
            return full_checkpoint(read_sharded(Path(path)))
        checkpoint: dict[str, Any] = torch.load(path, map_location or "cpu", weights_only=True)
        return checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint mapped into memory; of a sharded one, with meta tensors in place of sharded tensors."""
    if path.is_dir():
        return read_sharded(path)
    checkpoint: dict[str, Any] = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
    return checkpoint


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint, sharded or not, as full tensors."""
    checkpoint = read_checkpoint(path)
    checkpoint.pop("optimizer_states", None)
    weights: dict[str, Tensor] = (full_checkpoint(checkpoint) if path.is_dir() else checkpoint)["state_dict"]
    return weights


def check_checkpoint(path: Path, advice: str, thorough: bool = True) -> None:
    """Refuse a checkpoint that no training can resume from.

    Args:
        path: file, or folder of shards.
        advice: end of the message.
        thorough: read all of it and compare it with its checksums.

    Raises:
        InputError: it is not a checkpoint of a training, is damaged, was written by another version of dipo-pl, or holds
            more than tensors and plain values, which could be code.
    """
    try:
        content = read_checkpoint(path)
        content["loops"]["fit_loop"], content["state_dict"], content["global_step"]
        if content.get(FORMAT_KEY) != FORMAT:
            raise ValueError("another version of dipo-pl has written it")
        if thorough:
            _check_archive(path / INDEX if path.is_dir() else path)
            if path.is_dir():
                check_shards(path)
    except Exception as error:
        # torch's message advises to load it with weights_only=False.
        unsafe = isinstance(error, UnpicklingError)
        why = "it holds more than tensors and plain values, which could be code" if unsafe else str(error)
        why = why or type(error).__name__
        raise InputError(
            f"cannot read the checkpoint {path} ({' '.join(why.split())[:200]}): {advice}"
        ) from error


def newest_readable(run: RunFolder, thorough: bool) -> Path | None:
    """Return the newest checkpoint that a run can resume from, None where it has none.

    Args:
        run: whose checkpoint.
        thorough: compare checksums.

    Raises:
        InputError: there are checkpoints, and none can be read.
    """
    errors: list[InputError] = []
    for checkpoint in run.to_resume_from:
        try:
            check_checkpoint(checkpoint, "remove it to start afresh, or give another as ckpt_path", thorough)
            refuse_weights_alone(checkpoint)
        except InputError as error:
            errors.append(error)
            continue
        if errors:
            why = str(errors[0]).rpartition(": ")[0]
            rank_zero_warn(f"{why}: resuming from the previous checkpoint")
        return checkpoint
    if len(errors) > 1:
        both = f"remove it and {run.previous_checkpoint.name} to start afresh"
        raise InputError(str(errors[0]).replace("remove it to start afresh", both)) from errors[0]
    if errors:
        raise errors[0]
    return None


def refuse_unreadable(checkpoint: Path, thorough: bool) -> None:
    """Refuse a checkpoint, named as ckpt_path, that does not exist or cannot be used.

    Raises:
        InputError: see `check_checkpoint`.
    """
    if not checkpoint.exists():
        raise InputError(
            f"no checkpoint {checkpoint}: give a file or a folder of shards, or leave ckpt_path out"
        )
    check_checkpoint(checkpoint, "give another as ckpt_path, or leave ckpt_path out", thorough)


def refuse_weights_alone(checkpoint: Path) -> None:
    """Refuse to train on from a checkpoint without the optimizer's state, as that of the best evaluation is.

    Raises:
        InputError: it holds weights alone.
    """
    if "optimizer_states" not in read_checkpoint(checkpoint):
        raise InputError(
            f"{checkpoint} holds weights alone, without the optimizer's state: give last.ckpt of that run as ckpt_path, or "
            "make that run with --checkpoint.save_weights_only false"
        )


def refuse_fewer_epochs(checkpoint: Path, max_epochs: int | None) -> None:
    """Refuse to resume with fewer epochs than the checkpoint has completed.

    Raises:
        InputError: see above.
    """
    done = read_checkpoint(checkpoint)["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if max_epochs is not None and 0 <= max_epochs < done:
        raise InputError(
            f"trainer.max_epochs is {max_epochs} and {checkpoint} has completed {done} epochs: raise trainer.max_epochs"
        )


def replace_last(run: RunFolder, new: Path, keep: bool) -> None:
    """Rename a new checkpoint to last.ckpt; the old one becomes previous.ckpt, or is removed.

    At every moment one of both names is a whole checkpoint, also of folders, which no rename replaces.

    Args:
        run: whose checkpoint.
        new: path of the new one.
        keep: keep the old one, in place of the previous one; false keeps the previous one.

    Raises:
        WriteError: a rename fails.
    """
    last, previous = run.last_checkpoint, run.previous_checkpoint
    aside = run.checkpoints / ".replaced"
    with writing(last):
        remove(aside)
        to_previous = keep or not previous.exists()
        if last.exists() and to_previous:
            if previous.exists():
                os.replace(previous, aside)
            os.replace(last, previous)
        elif last.exists():
            os.replace(last, aside)
        os.replace(new, last)
        sync(run.checkpoints)
        remove(aside)
        if to_previous and not keep:
            remove(previous)


def _check_archive(path: Path) -> None:
    # torch does not compare what it reads with the checksums that it wrote.
    with ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} is damaged")
