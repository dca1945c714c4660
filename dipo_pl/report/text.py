"""The table for a terminal."""

import shutil
import sys
from collections.abc import Sequence
from textwrap import wrap

from dipo_pl.report.contents import Report
from dipo_pl.report.seeds import METHOD, SeedGroup
from dipo_pl.report.sequences import TITLE, RequestSequence, shortened, stage_table
from dipo_pl.report.table import Table


def as_text(report: Report, width: int | None = None) -> str:
    """The headline figures; the best carry an asterisk.

    Args:
        width: in characters, beyond which the table goes on in further blocks of columns.
    """
    table = report.table.short
    lines = [f"Convention {report.convention}", ""]
    for block in _blocks(_cells(table), width):
        lines += [*block, ""]
    lines += [f"* {table.marks}", *(f"- {each}" for each in report.notes)]
    if report.seeds:
        lines += ["", f"Several seeds: mean [low, high], {METHOD}", ""]
        lines += _aligned(_seed_cells(report.seeds, table))
    for each in report.sequences:
        lines += ["", *sequence_lines(each, report.utility_figure, width)]
    return "\n".join(each.rstrip() for each in lines) + "\n"


def sequence_lines(sequence: RequestSequence, utility: str | None, width: int | None = None) -> list[str]:
    """The table of a sequence; each block of columns begins with stage and request."""
    table = stage_table(sequence, utility)
    names = [table.head[1], *(shortened(row[1]) or "-" for row in table.rows)]
    longest = max(map(len, names))
    cells = [
        [row[0], name.ljust(longest), *(each or "-" for each in row[2:])]
        for row, name in zip([table.head, *table.rows], names, strict=True)
    ]
    lines = [*wrap(f"{TITLE}: {table.title}. {table.caption}", width or 120), ""]
    for block in _blocks(cells, width):
        lines += [*block, ""]
    return [each.rstrip() for each in lines[:-1]]


def terminal_width() -> int | None:
    """In characters; None where standard output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _blocks(cells: list[list[str]], width: int | None) -> list[list[str]]:
    """The table, cut between columns; each block begins with the first two of them."""
    lines = _aligned(cells)
    if width is None or len(lines[0]) <= width or len(cells[0]) < 4:
        return [lines]
    fitting = max(
        (
            count
            for count in range(3, len(cells[0]))
            if len(_aligned([row[:count] for row in cells])[0]) <= width
        ),
        default=3,
    )
    rest = [[*row[:2], *row[fitting:]] for row in cells]
    return [_aligned([row[:fitting] for row in cells]), *_blocks(rest, width)]


def _cells(table: Table) -> list[list[str]]:
    head = ["", "", *(each.title for each in table.columns)]
    body = [
        [row.name, str(row.kind)]
        + [
            (table.text(index, each) or "-") + ("*" if table.is_best(index, each) else " ")
            for each in table.columns
        ]
        for index, row in enumerate(table.rows)
    ]
    return [head, *body]


def _seed_cells(groups: Sequence[SeedGroup], table: Table) -> list[list[str]]:
    columns = [each for each in table.columns if any(each.key in group.figures for group in groups)]
    head = ["", *(f"{each.name} ({len(each.seeds)} seeds)" for each in groups)]
    return [head] + [
        [each.title, *(interval_text(group, each.key) or "-" for group in groups)] for each in columns
    ]


def interval_text(group: SeedGroup, key: str) -> str:
    """A mean with its interval; empty where some seed lacks the figure."""
    from dipo_pl.report.columns import columns_of

    if key not in group.figures:
        return ""
    (column,) = columns_of([key])
    mean, low, high = (column.text(each) for each in group.figures[key])
    return f"{mean} [{low}, {high}]"


def _aligned(cells: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [each.rjust(width) for each, width in zip(line[1:], widths[1:], strict=True)]
        )
        for line in cells
    ]
