"""Records of files as people have them: JSON lines, a JSON list, CSV, Parquet, Arrow, each also compressed."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dipo_pl.errors import InputError
from dipo_pl.paths import expanded
from dipo_pl.storage.text import decoded

# A record and its place.
Placed = tuple[str, Mapping[str, Any]]

# The ends of names under which a set may lie in a folder, the first that exists.
SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".arrow")
COMPRESSED = ("", ".gz", ".zst", ".bz2", ".xz")
CONVERT = ".to_json('rows.jsonl', orient='records', lines=True, force_ascii=False)"
# What other files begin with, and how their rows become JSON lines.
OTHERS = {
    b"\xd0\xcf\x11\xe0": f"a spreadsheet of old Excel: save it as CSV, or pandas.read_excel(...){CONVERT}",
    b"SQLite format 3": f"an SQLite database: pandas.read_sql('select ...', connection){CONVERT}",
    b"\x89HDF": f"an HDF5 file: pandas.read_hdf(...){CONVERT}",
    b"ORC": f"an ORC file: pandas.read_orc(...){CONVERT}",
    b"Obj\x01": "an Avro file: write one JSON object a line, or Parquet",
    b"\x80": "a pickle, which can run code when it is read: write JSON lines where you trust it",
    b"7z\xbc\xaf": "an archive: unpack it, and give the file in it",
    b"Rar!": "an archive: unpack it, and give the file in it",
    b"%PDF": "a PDF: extract its text into lines of {\"text\": ...}",
}  # fmt: skip


def named_file(folder: Path, name: str) -> Path:
    """Return the file or folder of the records `name` in a folder, whatever its format; if there is none, NAME.jsonl."""
    names = [folder / f"{name}{kind}{packed}" for kind in SUFFIXES for packed in COMPRESSED]
    found = [*(each for each in names if each.is_file()), folder / name]
    return next((each for each in found if each.exists()), folder / f"{name}.jsonl")


def read_records(given: str | Path) -> list[Placed]:
    """Return the records of a file with the place of each, in order.

    Args:
        given: a file of JSON lines, a list of JSON objects, CSV or TSV with a header, Parquet or Arrow; each may be
            compressed by gzip, Zstandard, bzip2 or xz. Or a folder that `datasets` has written with
            save_to_disk, or of the Parquet files of one split.

    Raises:
        InputError: there is no such file, it is of another format, or one of its records is not an object.
    """
    path = Path(expanded(str(given)))
    if path.is_dir():
        return _from_folder(path)
    content = read_content(path, "a file of JSON lines, a JSON list, CSV or Parquet")
    found = _from_content(path, content)
    if not found:
        raise InputError(f"{path} is empty: it needs at least one row")
    return found


def read_content(path: Path, kind: str) -> bytes:
    """Return the bytes of a file, decompressed; `kind` says in an error what the file should be.

    Raises:
        InputError: the file is missing, cannot be read, or its compressed data are damaged.
    """
    try:
        return _decompressed(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        at_hub = path.parts if not path.is_absolute() and not path.suffix else ()
        hub = f"; of a data set of the hub: datasets.load_dataset({str(path)!r}, split='train').to_json('rows.jsonl')"
        raise InputError(
            f"no file {path}: give the path of {kind}{hub if len(at_hub) == 2 else ''}"
        ) from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from None


def _decompressed(content: bytes) -> bytes:
    if content.startswith(b"\x1f\x8b"):
        return _decompressed(gzip.decompress(content))
    if content.startswith(b"BZh") and content[4:10] == b"1AY&SY":
        return _decompressed(bz2.decompress(content))
    if content.startswith(b"\xfd7zXZ\x00"):
        return _decompressed(lzma.decompress(content))
    if content.startswith(b"\x28\xb5\x2f\xfd"):
        # Late, as below: importing it takes a while, and most files are plain text.
        import pyarrow

        with pyarrow.CompressedInputStream(pyarrow.BufferReader(content), "zstd") as stream:
            return _decompressed(bytes(stream.read()))
    return content


def _from_content(path: Path, content: bytes) -> list[Placed]:
    if content.startswith(b"PAR1"):
        return _from_table(path, lambda pyarrow: pyarrow.parquet.read_table(pyarrow.BufferReader(content)))
    if content.startswith(b"ARROW1"):
        return _from_table(path, lambda pyarrow: pyarrow.ipc.open_file(content).read_all())
    if content.startswith(b"\xff\xff\xff\xff"):
        return _from_table(path, lambda pyarrow: pyarrow.ipc.open_stream(content).read_all())
    if content.startswith(b"PK\x03\x04"):
        raise InputError(f"{path} is {_zipped(content)}")
    for start, advice in OTHERS.items():
        if content.startswith(start):
            raise InputError(f"{path} is {advice}")
    text = decoded(content, path)
    suffixes = {each.lower() for each in path.suffixes}
    if suffixes & {".csv", ".tsv"}:
        return list(_from_csv(path, text, "\t" if ".tsv" in suffixes else ","))
    if text.lstrip().startswith("["):
        return _from_list(path, text)
    return list(_from_lines(path, text))


def _zipped(content: bytes) -> str:
    try:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except zipfile.BadZipFile:
        names = []
    if any(each.startswith("xl/") for each in names) or "content.xml" in names:
        return f"a spreadsheet: save it as CSV (UTF-8), or pandas.read_excel(...){CONVERT}"
    return f"a zip archive ({', '.join(names[:3]) or 'damaged'}): unpack it, and give the file in it"


def _from_folder(path: Path) -> list[Placed]:
    if (path / "dataset_dict.json").is_file():
        splits = [each.name for each in sorted(path.iterdir()) if each.is_dir()]
        raise InputError(
            f"{path} holds the splits {', '.join(splits)}: give one of them, such as {path / splits[0]}"
        )
    if (path / "state.json").is_file():
        try:
            names = [
                each["filename"] for each in json.loads((path / "state.json").read_text())["_data_files"]
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"cannot read {path / 'state.json'}: {error!r}") from None
        return [each for name in names for each in read_records(path / name)]
    files = [each.name for each in sorted(path.iterdir()) if each.is_file()]
    parts = [each for each in files if each.endswith(".parquet")]
    if len({each.partition("-")[0] for each in parts}) == 1:
        # train-00000-of-00002.parquet, ...
        return [each for name in parts for each in read_records(path / name)]
    shown = f" (it has {', '.join(files[:5])}{', ...' if len(files) > 5 else ''})" if files else ""
    raise InputError(f"{path} is a folder{shown}: give the files themselves, one or a list")


def _from_table(path: Path, read: Callable[[Any], Any]) -> list[Placed]:
    import pyarrow
    import pyarrow.parquet

    try:
        records = read(pyarrow).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from None
    return [(f"{path}, row {number}", record) for number, record in enumerate(records, start=1)]


def _from_csv(path: Path, text: str, delimiter: str) -> Iterator[Placed]:
    csv.field_size_limit(2**31 - 1)
    header = text.lstrip("\n").partition("\n")[0]
    if delimiter not in header:
        delimiter = next((each for each in ";\t|" if each in header), delimiter)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(map(str.strip, cells)):
                continue
            if not names:
                names = [each.strip() for each in cells]
                if twice := {each for each in names if names.count(each) > 1}:
                    raise InputError(f"{where}: the column {min(twice)!r} is there twice")
                continue
            if len(cells) != len(names):
                raise InputError(
                    f"{where}: has {len(cells)} cells and the header {len(names)} ({', '.join(names)}): quote cells that "
                    f"hold {delimiter!r}"
                )
            # CSV has no other way to write that nothing is given.
            yield where, {name: cell for name, cell in zip(names, cells, strict=True) if cell.strip()}
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None


def _from_list(path: Path, text: str) -> list[Placed]:
    records = parse_json(text, str(path))
    return [checked_object(record, f"{path}[{number}]") for number, record in enumerate(records)]


def _from_lines(path: Path, text: str) -> Iterator[Placed]:
    for number, (where, line) in enumerate(lines_of(text, path)):
        try:
            record = parse_json(line, where)
        except InputError:
            if number == 0:
                _refuse_one_object(path, text)
            raise
        yield checked_object(record, where)


def _refuse_one_object(path: Path, text: str) -> None:
    try:
        whole = parse_json(text, str(path))
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


def lines_of(text: str, path: str | Path) -> Iterable[tuple[str, str]]:
    """Return the lines of a text that are not blank, each with its place."""
    lines = enumerate(text.split("\n"), start=1)
    return [(f"{path}, line {number}", line) for number, line in lines if line.strip()]


def read_lines(given: str | Path, kind: str) -> list[tuple[str, str]]:
    """Read the lines of a text file that are not blank, each with its place; `kind` says in an error what it should be.

    Raises:
        InputError: the file is missing, empty or not UTF-8.
    """
    path = Path(expanded(str(given)))
    found = [*lines_of(decoded(read_content(path, kind), path), path)]
    if not found:
        raise InputError(f"{path} is empty: it needs at least one row")
    return found


def parse_json(text: str, where: str) -> Any:
    """Parse JSON whose texts can all be encoded as UTF-8.

    Raises:
        InputError: the text is not JSON, is nested too deeply, or has an unpaired surrogate.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
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
    return value


def load_split(path: str, configuration: str, split: str, name: str) -> Iterable[Mapping[str, Any]]:
    """Load the records of one split of a data set on the hub, or of a copy of its repository; `name` is for errors.

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
