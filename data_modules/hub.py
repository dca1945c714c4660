"""Data sets of the hub."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dipo_pl.errors import InputError


def load_split(path: str, configuration: str, split: str, what: str) -> Iterable[Mapping[str, Any]]:
    """The records of one split of a data set, on the hub or copied from it.

    Args:
        what: it is, to name in an error.
    Raises:
        InputError: it cannot be had.
    """
    if Path(path).is_file():
        raise InputError(
            f"data.path {path} is a file: give the folder that it is in, or a dataset of the hub"
        )
    import datasets

    try:
        records: Iterable[Mapping[str, Any]] = datasets.load_dataset(path, configuration, split=split)
    except Exception as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"cannot read {what} from data.path {path!r}, which is neither a folder here nor a dataset that the hub "
            f"gave ({cause[:200]})"
        ) from error
    return records
