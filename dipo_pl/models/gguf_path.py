"""Which files a model's path means: a GGUF file, or safetensors files; imports nothing heavy."""

from contextlib import suppress
from pathlib import Path

from dipo_pl.errors import InputError

SUFFIX = ".gguf"
# Names that an error lists.
LISTED = 6


def local_gguf(path: str, name: str | None = None) -> Path | None:
    """Return the GGUF file that a path means, None for a model in another format and for a hub id.

    Args:
        path: a GGUF file, or a folder: the file `name` in it, or the only GGUF file of a folder without safetensors files.
        name: name of a file in the folder.

    Raises:
        InputError: there is no such file, or there are several and none is named.
    """
    given = Path(path)
    if given.is_dir():
        return _in_folder(given, name)
    if given.suffix.lower() != SUFFIX:
        return None
    if name is None and not given.is_file():
        raise InputError(f"no GGUF file {path}: give the path of one, or a folder that holds one")
    if name is not None and given.is_file():
        raise InputError(f"{path} is one file: leave model.policy.gguf_file out (got {name})")
    return given if given.is_file() else None


def weight_files(path: str, name: str | None = None) -> list[Path]:
    """Return the files that hold a model's weights: its GGUF file, or all safetensors files of a folder.

    Empty for a hub id, and where there are none: whoever loads the model says what is wrong.

    Args:
        path: as `local_gguf` takes it.
        name: as `local_gguf` takes it.
    """
    with suppress(InputError):
        if (gguf := local_gguf(path, name)) is not None:
            return [gguf]
        return sorted(Path(path).glob("*.safetensors"))
    return []


def _in_folder(folder: Path, name: str | None) -> Path | None:
    found = sorted(each.name for each in folder.iterdir() if each.suffix.lower() == SUFFIX and each.is_file())
    listed = ", ".join(found[:LISTED]) + (", ..." if len(found) > LISTED else "")
    if name is not None:
        if not (folder / name).is_file():
            instead = f"set it to {listed}" if found else "there is no GGUF file in that folder: leave it out"
            raise InputError(f"model.policy.gguf_file: no file {name} in {folder}: {instead}")
        return folder / name
    if not found or any(folder.glob("*.safetensors*")):
        return None
    if len(found) > 1:
        raise InputError(
            f"{folder} holds {len(found)} GGUF files ({listed}): give the path of one of them, or name it by "
            "model.policy.gguf_file"
        )
    return folder / found[0]
