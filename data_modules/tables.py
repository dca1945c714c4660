"""Records of Parquet and Arrow files, and of data sets that the library `datasets` loads, a few rows at a time."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dipo_pl.errors import InputError, short_message

# Rows that are Python objects at one time.
ROWS = 1024


def parquet_records(path: Path, source: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a Parquet file with the place of each; `source` is its path or its bytes."""
    # Imported here because it takes a while, and most files are plain text.
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(_input(source), pre_buffer=False) as file:
        yield from _placed(path, file.iter_batches(batch_size=ROWS))


def arrow_records(path: Path, source: Any, stream: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of an Arrow file with the place of each; `stream` says that it is of the form for streams."""
    import pyarrow

    if stream:
        batches: Iterable[Any] = pyarrow.ipc.open_stream(_input(source))
    else:
        file = pyarrow.ipc.open_file(_input(source))
        batches = map(file.get_batch, range(file.num_record_batches))
    yield from _placed(path, batches)


def _input(source: Any) -> Any:
    import pyarrow

    return pyarrow.BufferReader(source) if isinstance(source, bytes) else pyarrow.memory_map(str(source))


def _placed(source: str | Path, batches: Iterable[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):
            for record in batch.slice(start, ROWS).to_pylist():
                number += 1
                yield f"{source}, row {number}", record


def saved_files(folder: Path) -> list[Path]:
    """Return the Arrow files of a data set that `datasets` has written with save_to_disk.

    Raises:
        InputError: the folder holds several splits, or its list of files cannot be read.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = [each.name for each in sorted(folder.iterdir()) if each.is_dir()]
        raise InputError(
            f"{folder} holds the splits {', '.join(splits)}: give one of them, such as {folder / splits[0]}"
        )
    state = folder / "state.json"
    try:
        return [folder / each["filename"] for each in json.loads(state.read_text())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {state}: {error!r}") from None


def hub_records(given: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a data set of the hub with the place of each.

    Args:
        given: `NAME`, `NAME:CONFIGURATION`, `NAME::SPLIT` or `NAME:CONFIGURATION:SPLIT`, where NAME may also be a folder
            with a copy of the repository. SPLIT may be a slice, such as `train[:1000]`. Where there is one alone, it
            need not be named.

    Raises:
        InputError: it cannot be loaded, or has several configurations or splits and none is named.
    """
    name, _, rest = given.partition(":")
    configuration, _, split = rest.partition(":")
    loaded = _loaded(given, name, configuration or None, split or None)
    if isinstance(loaded, Mapping):
        if len(loaded) != 1:
            raise InputError(
                f"{given} has the splits {', '.join(loaded)}: give one of them, such as "
                f"{name}:{configuration}:{next(iter(loaded))}"
            )
        (loaded,) = loaded.values()
    yield from _placed(given, loaded.with_format("arrow").iter(ROWS))


def _loaded(given: str, name: str, configuration: str | None, split: str | None) -> Any:
    # Imported here because it takes a second, which only data from the hub needs.
    import datasets

    try:
        return datasets.load_dataset(name, configuration, split=split)
    except Exception as error:
        made = isinstance(error, datasets.exceptions.DatasetGenerationError)
        cause = error.__cause__ if made and isinstance(error.__cause__, Exception) else error
        raise InputError(
            f"cannot read {given}: it is no file or folder here, and as a data set of the hub, "
            f"NAME:CONFIGURATION:SPLIT, it is not loaded ({short_message(cause)})"
        ) from error
