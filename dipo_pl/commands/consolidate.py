"""The command `dipo-pl consolidate`: write one checkpoint file from a sharded checkpoint."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dipo_pl.cli.command_parser import Parser
from dipo_pl.errors import InputError
from dipo_pl.storage.files import replacing
from dipo_pl.storage.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

DESCRIPTION = """\
Make one checkpoint file of a sharded checkpoint (see sharded_checkpoints.yaml), for `dipo-pl fit --ckpt_path FILE` and
torch.load(FILE, weights_only=True) on any number of devices. All shards are first compared with their checksums. Tensors
are mapped from disk, which needs room for twice the file. A run need not be consolidated to resume: `fit` reads sharded
checkpoints under every strategy."""


def consolidate(arguments: Sequence[str], debug: bool = False) -> int:
    """Run the command; return 0, 2 for wrong input, 1 for another failure."""
    given = parser().parse_args(arguments)
    run = RunFolder(given.path)
    folder = run.last_checkpoint if run.manifest.is_file() else given.path
    if not folder.is_dir():
        raise InputError(
            f"{folder} is one file already: use it as it is"
            if folder.is_file()
            else f"no checkpoint {folder}: give the folder of a sharded checkpoint, or of a run that has one"
        )
    output = _new_file(given.output)
    if folder.resolve() in output.resolve().parents:
        raise InputError(f"--output {output} is inside the checkpoint: give a file elsewhere")

    # Imported late: torch takes seconds.
    import torch

    from dipo_pl.storage.checkpoints import check_checkpoint
    from dipo_pl.storage.sharded_checkpoint import INDEX, full_checkpoint, read_sharded

    index = folder / INDEX
    if not index.is_file():
        raise InputError(f"{folder} is not a sharded checkpoint (it has no {INDEX}): give another folder")
    before = index.stat()
    check_checkpoint(folder, "give another checkpoint, for example previous.ckpt in the same folder")
    with replacing(output) as temporary, tempfile.TemporaryDirectory(dir=temporary.parent) as scratch:
        file = Path(scratch) / "tensor"
        content = full_checkpoint(read_sharded(folder), lambda shape, dtype: _on_disk(shape, dtype, file))
        with open(temporary, "wb") as opened:
            torch.save(content, opened)
        if not index.is_file() or index.stat() != before:
            raise InputError(f"{folder} was replaced meanwhile: wait until its run has ended")
    # Checkpoints of the best evaluation have no optimizer state to train on with.
    command = "fit" if "optimizer_states" in content else "validate"
    print(f"the checkpoint is in {output}: dipo-pl {command} --config ... --ckpt_path {output}")
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("consolidate", DESCRIPTION)
    path = "folder of a sharded checkpoint, or of a run: its last.ckpt"
    made.add_argument("path", metavar="PATH", type=Path, help=path)
    made.add_argument("--output", required=True, metavar="FILE", help="a new file")
    return made


def _new_file(text: str) -> Path:
    """Return the path of a file that can be made; raise InputError if it exists, or cannot be a file."""
    path = Path(text)
    try:
        exists = path.exists()
    except OSError as error:
        why = f"cannot be a file ({error.strerror})"
        raise InputError(f"--output {text[:100]} {why}: give another") from error
    if not text:
        raise InputError("--output must name a file (got '')")
    if exists:
        raise InputError(f"--output {text} already exists: give another file, or remove it")
    if not path.parent.is_dir() and path.parent.exists():
        raise InputError(f"--output {text}: {path.parent} is not a folder")
    return path


def _on_disk(shape: "torch.Size", dtype: "torch.dtype", file: Path) -> "torch.Tensor":
    """Return a tensor in a file that is removed with the tensor; the system writes its memory back under pressure."""
    import torch

    if not shape.numel():
        return torch.empty(shape, dtype=dtype)
    with open(file, "wb") as opened:
        # Allocated now: a full disk would otherwise end the process when the mapped memory is written.
        os.posix_fallocate(opened.fileno(), 0, shape.numel() * dtype.itemsize)
    mapped = torch.from_file(str(file), shared=True, size=shape.numel(), dtype=dtype).view(shape)
    file.unlink()
    return mapped
