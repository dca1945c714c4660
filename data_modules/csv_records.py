"""Records of CSV and TSV files: the names are those of the header, and a cell without text is as good as none."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from dipo_pl.errors import InputError
from dipo_pl.storage.text import utf8

DELIMITERS = ",;\t|"
# The line by which Excel tells what divides cells.
SEPARATOR = re.compile(r"sep=(.)")


class Cells(dict[str, str]):
    """Cells of a line by the names in the header, for which the first line of a file without one is taken."""


def csv_records(path: Path, stream: io.BufferedReader, delimiter: str) -> Iterator[tuple[str, Cells]]:
    """Yield the cells of each line after the header, with its place.

    Args:
        path: for errors.
        stream: the content.
        delimiter: what divides cells; where the header does not have it, the first of `,`, `;`, tab and `|` that it has.

    Raises:
        InputError: a line is not UTF-8 or not CSV, has more or fewer cells than the header, or this names a column twice.
    """
    csv.field_size_limit(2**31 - 1)
    lines = _lines(path, stream)
    first = next(lines, "")
    skipped = 0
    while first and not first.strip():
        first, skipped = next(lines, ""), skipped + 1
    if told := SEPARATOR.fullmatch(first.strip("\r\n")):
        delimiter, first, skipped = told[1], next(lines, ""), skipped + 1
    if delimiter not in first:
        delimiter = next((each for each in DELIMITERS if each in first), delimiter)
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    names: list[str] = []
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num + skipped}"
            if not any(map(str.strip, cells)):
                continue
            if names:
                yield where, _cells(names, cells, delimiter, where)
            else:
                names = _names(cells, where)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num + skipped}: not valid CSV ({error})") from None


def _lines(path: Path, stream: io.BufferedReader) -> Iterator[str]:
    """Yield the lines with their ends, which may be part of a cell."""
    for number, content in enumerate(stream, start=1):
        # More than one where lines end as on old Macs.
        yield from io.StringIO(utf8(content, f"{path}, line {number}"), newline="")


def _names(header: Sequence[str], where: str) -> list[str]:
    """Return the names of the columns; spreadsheets leave some empty."""
    names = [each.strip() for each in header]
    if twice := {each for each in names if each and names.count(each) > 1}:
        raise InputError(f"{where}: the column {min(twice)!r} is there twice")
    return [each or f"number {number}" for number, each in enumerate(names, start=1)]


def _cells(names: Sequence[str], cells: Sequence[str], delimiter: str, where: str) -> Cells:
    if len(cells) != len(names):
        raise InputError(
            f"{where}: has {len(cells)} cells and the header {len(names)} ({', '.join(names)}): quote cells that hold "
            f"{delimiter!r}"
        )
    # CSV has no other way to write that nothing is given.
    return Cells((name, cell) for name, cell in zip(names, cells, strict=True) if cell.strip())
