"""Records of files as people have them: JSON lines, a JSON list, CSV, Parquet, Arrow, each also compressed; the hub."""

import glob
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dipo_pl.data_modules.csv_records import csv_records
from dipo_pl.data_modules.file_content import opened, reading, refuse_other_text, refuse_others, text_lines
from dipo_pl.data_modules.tables import arrow_records, hub_records, parquet_records, saved_files
from dipo_pl.errors import InputError
from dipo_pl.paths import expanded
from dipo_pl.storage.text import decoded

# A record and its place.
Placed = tuple[str, Mapping[str, Any]]

# The ends of names under which a set may lie in a folder, the first that exists.
SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".arrow")
COMPRESSED = ("", ".gz", ".zst", ".bz2", ".xz")
KIND = "a file of JSON lines, a JSON list, CSV or Parquet"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
FILE_NAME = re.compile(r".*\.[A-Za-z]\w*")
BLANKS = re.compile(r"\s*")


def named_file(folder: Path, name: str) -> Path:
    """Return the file or folder of the records `name` in a folder, whatever its format; if there is none, NAME.jsonl."""
    names = [folder / f"{name}{kind}{packed}" for kind in SUFFIXES for packed in COMPRESSED]
    found = [*(each for each in names if each.is_file()), folder / name]
    return next((each for each in found if each.exists()), folder / f"{name}.jsonl")


def read_records(given: str | Path) -> Iterator[Placed]:
    """Yield the records of a file with the place of each, in order, a few in memory at a time.

    Args:
        given: a file of JSON lines, a list of JSON objects, CSV or TSV with a header, Parquet or Arrow; each may be
            compressed by gzip, Zstandard, bzip2 or xz. Or a pattern such as `rows/*.jsonl`, whose files follow each other in
            the order of their names; a folder that `datasets` has written with save_to_disk, or of the Parquet files of one
            split; a data set of the hub, see `hub_records`.

    Raises:
        InputError: there is no such file, it is of another format, or one of its records is not an object.
    """
    if "://" in str(given):
        raise InputError(
            f"{given} is an address: download the file first, or give a data set of the hub as NAME:CONFIGURATION:SPLIT"
        )
    path = Path(expanded(str(given)))
    empty = True
    for each in _records(path):
        empty = False
        yield each
    if empty:
        raise InputError(f"{path} is empty: it needs at least one row")


def _records(path: Path) -> Iterator[Placed]:
    name, (before, colon, _) = str(path), str(path).partition(":")
    if path.is_dir():
        return _from_folder(path)
    if not path.exists():
        at_hub = HUB_ID.fullmatch(before) and (colon or not FILE_NAME.fullmatch(before))
        if at_hub or (colon and Path(before).is_dir()):
            return hub_records(name)
        if glob.has_magic(name):
            return _from_pattern(name)
    return _from_file(path)


def _from_pattern(pattern: str) -> Iterator[Placed]:
    paths = sorted(each for each in glob.glob(pattern, recursive=True) if Path(each).is_file())
    if not paths:
        raise InputError(f"no file {pattern}: no name matches this pattern")
    for each in paths:
        yield from read_records(each)


def _from_file(path: Path) -> Iterator[Placed]:
    with reading(path, KIND), opened(path) as stream:
        start = stream.peek(8)
        # Arrow reads those parts of a file that it needs, if it is not compressed.
        source = path if isinstance(stream.raw, io.FileIO) else None
        if start.startswith(b"PAR1"):
            yield from parquet_records(path, source or stream.read())
        elif start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            yield from arrow_records(path, source or stream.read(), not start.startswith(b"ARROW1"))
        else:
            refuse_others(path, stream)
            yield from _from_text(path, stream)


def _from_text(path: Path, stream: io.BufferedReader) -> Iterator[Placed]:
    suffixes = {each.lower() for each in path.suffixes}
    start = stream.peek(8).removeprefix(b"\xef\xbb\xbf").lstrip()
    if suffixes & {".csv", ".tsv"} and not start.startswith(b"{"):
        return csv_records(path, stream, "\t" if ".tsv" in suffixes else ",")
    if start.startswith(b"["):
        return _from_list(path, decoded(stream.read(), path))
    return _from_lines(path, stream)


def _from_folder(path: Path) -> Iterator[Placed]:
    files = [each.name for each in sorted(path.iterdir()) if each.is_file()]
    parts = [each for each in files if each.endswith(".parquet")]
    if {"dataset_dict.json", "state.json"} & {*files}:
        paths = saved_files(path)
    elif len({each.partition("-")[0] for each in parts}) == 1:
        # train-00000-of-00002.parquet, ...
        paths = [path / name for name in parts]
    else:
        shown = f" (it has {', '.join(files[:5])}{', ...' if len(files) > 5 else ''})" if files else ""
        raise InputError(
            f"{path} is a folder{shown}: give the files themselves, one, a list, or a pattern such as {path}/*.jsonl"
        )
    for each in paths:
        yield from _from_file(each)


def _from_list(path: Path, text: str) -> Iterator[Placed]:
    """Yield the objects of a JSON list as they are decoded, so that they are not all in memory at once."""
    decoder, number = json.JSONDecoder(object_pairs_hook=_object), 0
    at = _after_blanks(text, text.index("[") + 1)
    closed = text.startswith("]", at)
    while not closed:
        where = f"{path}[{number}]"
        with _decoding(str(path)):
            record, end = decoder.raw_decode(text, at)
        with _decoding(where):
            _check_encodable(record, text[at:end])
        yield checked_object(record, where)
        number, at = number + 1, _after_blanks(text, end)
        closed = text.startswith("]", at)
        if not closed:
            with _decoding(str(path)):
                if not text.startswith(",", at):
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = _after_blanks(text, at + 1)
    with _decoding(str(path)):
        if (rest := _after_blanks(text, at + 1)) < len(text):
            raise json.JSONDecodeError("Extra data", text, rest)


def _after_blanks(text: str, at: int) -> int:
    blanks = BLANKS.match(text, at)
    return at if blanks is None else blanks.end()


def _from_lines(path: Path, stream: io.BufferedReader) -> Iterator[Placed]:
    for number, (where, line) in enumerate(text_lines(stream, path)):
        try:
            record = parse_json(line, where)
        except InputError:
            if number == 0:
                refuse_other_text(path, line)
                _refuse_one_object(path)
            raise
        yield checked_object(record, where)


def _refuse_one_object(path: Path) -> None:
    try:
        with opened(path) as stream:
            whole = parse_json(decoded(stream.read(), path), str(path))
    except InputError:
        return
    if not isinstance(whole, dict):
        return
    lists = [
        name for name, each in whole.items() if each and isinstance(each, list) and isinstance(each[0], dict)
    ]
    inside = f"the list {lists[0]!r} in it alone, or " if lists else ""
    raise InputError(f"{path} is one JSON object over several lines: write {inside}one object on each line")


def checked_object(record: Any, where: str) -> Placed:
    """Return a record and its place; raise InputError if it is not a JSON object."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: must be a JSON object (got {type(record).__name__})")
    return where, record


def parse_json(text: str, where: str) -> Any:
    """Parse JSON whose texts can all be encoded as UTF-8.

    Raises:
        InputError: the text is not JSON, is nested too deeply, or has an unpaired surrogate.
    """
    with _decoding(where):
        value = json.loads(text, object_pairs_hook=_object)
        _check_encodable(value, text)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(each for each in names if names.count(each) > 1)!r} is given twice")
    return made


def _check_encodable(value: Any, text: str) -> None:
    # Only these can make what UTF-8 cannot hold.
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()


@contextmanager
def _decoding(where: str) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{where}: not valid JSON ({error.msg} at {place})") from None
    except RecursionError:
        raise InputError(f"{where}: JSON is nested too deeply") from None
    except UnicodeEncodeError as error:
        surrogate = error.object[error.start]
        raise InputError(
            f"{where}: contains {surrogate!r}, an unpaired surrogate, which is not text"
        ) from None
    except ValueError as error:
        raise InputError(f"{where}: JSON cannot be used ({error})") from None


def content_of(folder: Path) -> str:
    """Return the first names in a folder in a list, for messages such as "it has a.csv, b.csv"."""
    return ", ".join(sorted(each.name for each in folder.iterdir())[:6]) or "nothing"


def load_split(
    path: str, configuration: str, split: str, name: str, place: str = "{path} {configuration}, row {row}"
) -> Iterable[Placed]:
    """Load the records of one split of a data set on the hub, or of a copy of its repository, with their places.

    Args:
        path: the data set or the copy.
        configuration: of the data set.
        split: of the configuration.
        name: of the split, for errors.
        place: format of a record's place, of `path`, `configuration`, `split` and `row`, which is counted from 0.

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
    return (
        (place.format(path=path, configuration=configuration, split=split, row=row), record)
        for row, record in enumerate(records)
    )
