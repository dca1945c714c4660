"""Data sets of the Hugging Face hub."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dipo_pl.errors import InputError


def load_split(path: str, configuration: str, split: str, name: str) -> Iterable[Mapping[str, Any]]:
    """Load the records of one split of a data set on the hub, or of a copy of its repository.

    Args:
        path: the data set's name on the hub, or the folder.
        configuration: the data set's configuration.
        split: the split.
        name: what the split is, named in errors.

    Raises:
        InputError: the split cannot be loaded.
    """
    if Path(path).is_file():
        raise InputError(f"data.path {path} is a file: give its folder, or a data set of the hub")
    # Imported here because it takes a second, which only data from the hub needs.
    import datasets

    try:
        records: Iterable[Mapping[str, Any]] = datasets.load_dataset(path, configuration, split=split)
    except Exception as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"cannot read {name}: data.path {path!r} is neither a local folder nor a data set that the hub returns "
            f"({cause[:200]})"
        ) from error
    return records
