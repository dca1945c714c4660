"""The command `dipo-pl consolidate`: write one checkpoint file from a checkpoint in shards."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dipo_pl.cli.command_parser import Parser, one_line_errors
from dipo_pl.errors import InputError
from dipo_pl.storage.run_folder import RunFolder, replacing

if TYPE_CHECKING:
    from torch import Tensor

    from dipo_pl.storage.sharded_checkpoint import StoredTensor

DESCRIPTION = """\
Makes one ordinary checkpoint file of a checkpoint in shards (see sharded_checkpoints.yaml), which
`dipo-pl fit --ckpt_path FILE` and torch.load(FILE, weights_only=True) take, with any number of devices. Checksums of all
shards are compared first. Memory holds one tensor at a time; the disk needs room for twice the file. To go on with the
run itself nothing need be consolidated: `fit` reads shards under every strategy."""


def consolidate(arguments: Sequence[str], debug: bool = False) -> int:
    """Returns 0, 2 where what was given is wrong, 1 where something else failed."""
    return one_line_errors(lambda: _consolidate(arguments), debug)


def _consolidate(arguments: Sequence[str]) -> int:
    parser = Parser("consolidate", DESCRIPTION)
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="folder of a checkpoint in shards, or of a run: its last.ckpt"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="a new file")
    given = parser.parse_args(arguments)
    run = RunFolder(given.path)
    folder = run.last_checkpoint if run.manifest.is_file() else given.path
    if not folder.is_dir():
        raise InputError(
            f"{folder} is one file already, and no checkpoint in shards: use it as it is"
            if folder.is_file()
            else f"no checkpoint {folder}: give the folder of a checkpoint in shards, or of a run that has one"
        )
    output = _new_file(given.output)
    if folder.resolve() in output.resolve().parents:
        raise InputError(f"--output {output} lies in the checkpoint itself: give a file elsewhere")

    import torch
    from tqdm import tqdm  # type: ignore[import-untyped]

    from dipo_pl.storage.checkpoint_io import check_checkpoint
    from dipo_pl.storage.sharded_checkpoint import REST, load_sharded, with_whole_tensors

    if not (folder / REST).is_file():
        raise InputError(f"{folder} is no checkpoint in shards (it has no {REST}): give another folder")
    index = (folder / REST).stat()
    check_checkpoint(folder, "give another, the previous.ckpt beside it, say")
    with replacing(output) as temporary, tempfile.TemporaryDirectory(dir=temporary.parent) as scratch:
        bar = tqdm(unit="tensor", desc="consolidate", disable=None)

        def read(stored: "StoredTensor") -> "Tensor":
            bar.update()
            return _on_disk(stored, Path(scratch) / "tensor")

        content = with_whole_tensors(load_sharded(folder), read)
        bar.close()
        with open(temporary, "wb") as file:
            torch.save(content, file)
        if not (folder / REST).is_file() or (folder / REST).stat() != index:
            raise InputError(
                f"{folder} has become another checkpoint meanwhile: wait until its run has ended"
            )
    print(f"the checkpoint is in {output}: dipo-pl fit --config ... --ckpt_path {output}")
    return 0


def _new_file(text: str) -> Path:
    """
    Raises:
        InputError: it cannot be one.
    """
    path = Path(text)
    try:
        there = path.exists()
    except OSError as error:
        raise InputError(
            f"--output {text[:100]} cannot be a file ({error.strerror}): give another"
        ) from error
    if not text:
        raise InputError("--output must name a file, got ''")
    if there:
        raise InputError(f"--output {text} is there already: give another file, or remove it")
    if not path.parent.is_dir() and path.parent.exists():
        raise InputError(f"--output {text}: {path.parent} is no folder")
    return path


def _on_disk(stored: "StoredTensor", file: Path) -> "Tensor":
    """The whole tensor, mapped: memory that it takes goes back to the disk where it is needed for others."""
    import torch

    if not all(stored.shape):
        return stored.whole()
    elements = torch.Size(stored.shape).numel()
    with open(file, "wb") as opened:
        # Mapped, a disk that is full would end the process instead of giving an error.
        os.posix_fallocate(opened.fileno(), 0, elements * stored.dtype.itemsize)
    mapped = torch.from_file(str(file), shared=True, size=elements, dtype=stored.dtype).view(stored.shape)
    file.unlink()
    return mapped.copy_(stored.whole())
