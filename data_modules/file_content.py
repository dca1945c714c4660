"""Content of files: opened whatever compresses it, read line by line, or refused in one line."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from dipo_pl.data_modules.csv_records import DELIMITERS
from dipo_pl.errors import InputError, short_message
from dipo_pl.paths import expanded
from dipo_pl.storage.files import LFS_POINTER, NOT_FETCHED
from dipo_pl.storage.text import decoded

CONVERT = ".to_json('rows.jsonl', orient='records', lines=True, force_ascii=False)"
# First bytes of files of other kinds, and how the rows of each become JSON lines.
OTHERS = {
    b"\xd0\xcf\x11\xe0": f"a document of old Excel or Word: save it as CSV, or pandas.read_excel(...){CONVERT}",
    b"SQLite format 3": f"an SQLite database: pandas.read_sql('select ...', connection){CONVERT}",
    b"\x89HDF": f"an HDF5 file: pandas.read_hdf(...){CONVERT}",
    b"ORC": f"an ORC file: pandas.read_orc(...){CONVERT}",
    b"Obj\x01": "an Avro file: write one JSON object a line, or Parquet",
    b"\x80": "a pickle, which can run code when it is read: write JSON lines where you trust it",
    b"7z\xbc\xaf": "an archive: unpack it, and give the file in it",
    b"Rar!": "an archive: unpack it, and give the file in it",
    b"\x04\x22\x4d\x18": "compressed by LZ4: decompress it, or take gzip, Zstandard, bzip2 or xz",
    b"\x93NUMPY": "a NumPy array: write one JSON object for each row",
    LFS_POINTER: NOT_FETCHED,
    b"%PDF": "a PDF: extract its text into lines of {\"text\": ...}",
}  # fmt: skip


@contextmanager
def reading(path: str | Path, kind: str = "a file") -> Iterator[None]:
    """Raise what goes wrong while a file is read as an InputError that names it; `kind` says what it should be."""
    try:
        yield
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no file {path}: give the path of {kind}") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError, NotImplementedError) as error:
        raise InputError(f"cannot read {path}: {short_message(error)}") from None


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for its bytes, which are decompressed as they are read."""
    with ExitStack() as stack:
        stream: io.BufferedReader = stack.enter_context(io.BufferedReader(io.FileIO(path)))
        while (inner := _decompressed(stream)) is not None:
            stream = stack.enter_context(io.BufferedReader(inner))
        yield stream


def read_content(path: Path, kind: str) -> bytes:
    """Return the bytes of a file, decompressed; `kind` says in an error what the file should be.

    Raises:
        InputError: the file is missing, cannot be read, or its compressed data are damaged.
    """
    with reading(path, kind), opened(path) as stream:
        return stream.read()


def _decompressed(stream: io.BufferedReader) -> Any:
    start = stream.peek(10)
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=stream)
    if start.startswith(b"BZh") and start[4:10] == b"1AY&SY":
        return bz2.BZ2File(stream)
    if start.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(stream)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        # Imported here because it takes a while, and most files are plain text.
        import pyarrow

        return pyarrow.CompressedInputStream(stream, "zstd")
    return None


def refuse_others(path: Path, stream: io.BufferedReader) -> None:
    """Raise an InputError that says how its rows become JSON lines, if a file is of a kind that cannot be read."""
    start = stream.peek(512)
    if start[257:262] == b"ustar":
        raise InputError(f"{path} is an archive: unpack it, and give the file in it")
    if start.startswith(b"PK\x03\x04"):
        raise InputError(f"{path} is {_zipped(stream.read())}")
    for other, advice in OTHERS.items():
        if start.startswith(other):
            raise InputError(f"{path} is {advice}")


def _zipped(content: bytes) -> str:
    names, kind = [], b""
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        # A document of OpenOffice says so.
        kind = archive.read("mimetype") if "mimetype" in names else b""
    if any(each.startswith("word/") for each in names) or kind.endswith(b".text"):
        return 'a text document: write its text into lines of {"text": ...}'
    if any(each.startswith("xl/") for each in names) or "content.xml" in names:
        return f"a spreadsheet: save it as CSV (UTF-8), or pandas.read_excel(...){CONVERT}"
    return f"a zip archive ({', '.join(names[:3]) or 'damaged'}): unpack it, and give the file in it"


def refuse_other_text(path: Path, line: str) -> None:
    """Raise an InputError that says what a text is whose first line is not JSON, if it does not begin as JSON does."""
    if line.lstrip().startswith(("{", "[", '"')):
        return
    if line.lstrip().startswith("<"):
        kind = 'XML or HTML: write its text into lines of {"text": ...}'
    elif any(each in line for each in DELIMITERS):
        kind = 'not JSON lines: if it is CSV, give it a name that ends in .csv; of plain text, write lines of {"text": ...}'
    else:
        kind = 'not JSON lines: write one JSON object for each row; of plain text, {"text": ...}'
    raise InputError(f"{path} is {kind}")


def text_lines(stream: io.BufferedReader, path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield the lines of a text that are not blank, each with its place.

    Raises:
        InputError: a line is not UTF-8.
    """
    number = 0
    for content in stream:
        # A stream takes several lines for one where they end as on old Macs.
        for line in decoded(content, f"{path}, line {number + 1}").removesuffix("\n").split("\n"):
            number += 1
            if line.strip():
                yield f"{path}, line {number}", line


def read_lines(given: str | Path, kind: str) -> list[tuple[str, str]]:
    """Read the lines of a text file that are not blank, each with its place; `kind` says in an error what it should be.

    Raises:
        InputError: the file is missing, empty or not UTF-8.
    """
    path = Path(expanded(str(given)))
    with reading(path, kind), opened(path) as stream:
        found = list(text_lines(stream, path))
    if not found:
        raise InputError(f"{path} is empty: it needs at least one row")
    return found
