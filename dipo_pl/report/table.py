"""A table of texts, and how it is written for a terminal, Markdown and LaTeX."""

import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from textwrap import fill

import pandas as pd

from dipo_pl.report.run import printable

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
} | {each: f"\\{each}" for each in "&%$#_{}"}


@dataclass(frozen=True)
class Table:
    """Table of texts with a title and a caption.

    Attributes:
        head: titles of the columns.
        rows: cells of each row; empty where nothing was measured.
        labels: number of leading columns that name the row; the others hold numbers.
        best, missed: (row, column) of the cells to highlight.
    """

    title: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1
    best: frozenset[tuple[int, int]] = field(default_factory=frozenset)
    missed: frozenset[tuple[int, int]] = field(default_factory=frozenset)

    def to_text(self, width: int | None = None) -> str:
        """Return title, caption and table for a terminal, best cells with an asterisk, missed ones with an exclamation mark.

        A table wider than `width` characters continues in further blocks of columns.
        """
        about = fill(printable(f"{self.title}. {self.caption}"), width or 120)
        columns = list(zip(self.head, *self.rows, strict=True))
        labels = [[_shortened(each, width) or "-" for each in column] for column in columns[: self.labels]]
        widths = [max(map(len, column)) for column in labels]
        names = ["  ".join(map(str.ljust, row, widths)) for row in zip(*labels, strict=True)]
        cells = [
            [(cell or "-") + self._mark(row, place) for place, cell in enumerate(found)][self.labels :]
            for row, found in enumerate(self.rows)
        ]
        if len(columns) == self.labels:
            table = "\n".join(names)
        else:
            frame = pd.DataFrame(cells, names[1:], pd.Index(self.head[self.labels :], name=names[0]))
            table = frame.to_string(line_width=width)
        # pandas ends a line that continues in a further block with a backslash.
        table = re.sub(r"[ \\]+$", "", table, flags=re.MULTILINE)
        return f"{about}\n\n{table}\n"

    def to_markdown(self) -> str:
        """Return title, caption and table in Markdown, best cells in bold."""
        rows = self._cells(lambda cell, best, _: f"**{cell}**" if best else markdown_escaped(cell))
        rule = [":--" if place < self.labels else "--:" for place in range(len(self.head))]
        head = [markdown_escaped(each) for each in self.head]
        lines = [f"| {' | '.join(each)} |\n" for each in (head, rule, *rows)]
        return f"{markdown_escaped(f'{self.title}. {self.caption}')}\n\n{''.join(lines)}"

    def to_latex(self) -> str:
        """Return a tabular for the package booktabs, best cells in bold, title and caption in a comment."""

        def cell_text(cell: str, best: bool, is_label: bool) -> str:
            return latex_escaped(cell) or "--" if is_label else _latex_number(cell, best)

        cells = self._cells(cell_text)
        columns = "l" * self.labels + "r" * (len(self.head) - self.labels)
        head = list(map(latex_escaped, self.head))
        tabular = pd.DataFrame(cells).to_latex(index=False, escape=False, header=head, column_format=columns)
        return f"% {printable(f'{self.title}. {self.caption}')}\n{tabular}"

    def _mark(self, row: int, place: int) -> str:
        if (row, place) in self.best:
            return "*"
        return "!" if (row, place) in self.missed else " " if self.best or self.missed else ""

    def _cells(self, text: Callable[[str, bool, bool], str]) -> list[list[str]]:
        """Return the text of each cell, a function of the cell, whether it is best, and whether it is a label."""
        return [
            [text(cell, (row, place) in self.best, place < self.labels) for place, cell in enumerate(cells)]
            for row, cells in enumerate(self.rows)
        ]


def terminal_width() -> int | None:
    """Return characters a line of the terminal; None if standard output is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def markdown_escaped(text: str) -> str:
    """Return the text on one line, without characters that Markdown interprets."""
    return re.sub(r"([\\`*_{}\[\]<>|~#$&])", r"\\\1", printable(text))


def latex_escaped(text: str) -> str:
    """Return the text on one line, without characters that LaTeX interprets."""
    return "".join(_LATEX.get(each, each) for each in printable(text))


def _latex_number(text: str, best: bool) -> str:
    number = re.sub(r"e([+-]?)0?(\d+)", _latex_power, text)
    if not number:
        return "--"
    return rf"\textbf{{\boldmath ${number}$}}" if best else f"${number}$"


def _latex_power(match: re.Match[str]) -> str:
    return rf" \times 10^{{{match[1].replace('+', '')}{match[2]}}}"


def _shortened(name: str, width: int | None) -> str:
    """Return the end of a name too long for a terminal; it tells paths apart better than their beginning."""
    return printable(name if width is None or len(name) <= 30 else f"...{name[-27:]}")
