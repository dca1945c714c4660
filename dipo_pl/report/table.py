"""A table of texts, and how it is written for a terminal, Markdown and LaTeX."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

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
        best: (row, column) of the cells to highlight.
    """

    title: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1
    best: frozenset[tuple[int, int]] = field(default_factory=frozenset)

    def to_text(self, width: int | None = None) -> str:
        """Return the table for a terminal, best cells with an asterisk.

        Args:
            width: characters a line; the table continues in further blocks of columns.
        """
        columns = list(zip(self.head, *self.rows, strict=True))
        labels = [[_shortened(cell) or "-" for cell in column] for column in columns[: self.labels]]
        widths = [max(map(len, column)) for column in labels]
        names = ["  ".join(map(str.ljust, row, widths)) for row in zip(*labels, strict=True)]
        if len(columns) == self.labels:
            return "\n".join(names)
        marks = {False: " " if self.best else "", True: "*"}
        cells = [
            [(row[place] or "-") + marks[(index, place) in self.best] for place in range(self.labels, len(row))]
            for index, row in enumerate(self.rows)
        ]
        frame = pd.DataFrame(cells, names[1:], pd.Index(self.head[self.labels :], name=names[0]))
        # pandas marks lines that continue with a backslash.
        return re.sub(r"[ \\]+$", "", frame.to_string(line_width=width), flags=re.MULTILINE)

    def to_markdown(self) -> str:
        """Return the table in Markdown, best cells in bold."""
        cells = [
            [
                f"**{cell}**" if (index, place) in self.best else markdown_escaped(cell)
                for place, cell in enumerate(row)
            ]
            for index, row in enumerate(self.rows)
        ]
        rule = [":--" if place < self.labels else "--:" for place in range(len(self.head))]
        return "\n".join(f"| {' | '.join(row)} |" for row in (map(markdown_escaped, self.head), rule, *cells))

    def to_latex(self) -> str:
        """Return a tabular for the package booktabs, best cells in bold."""
        cells = [
            [
                latex_escaped(cell) or "--" if place < self.labels else _latex_number(cell, (index, place) in self.best)
                for place, cell in enumerate(row)
            ]
            for index, row in enumerate(self.rows)
        ]
        columns = "l" * self.labels + "r" * (len(self.head) - self.labels)
        head = list(map(latex_escaped, self.head))
        return pd.DataFrame(cells).to_latex(index=False, escape=False, header=head, column_format=columns)


def markdown_escaped(text: str) -> str:
    """Return the text without characters that Markdown interprets."""
    return re.sub(r"([\\`*_{}\[\]<>|~#$&])", r"\\\1", text)


def latex_escaped(text: str) -> str:
    """Return the text without characters that LaTeX interprets."""
    return "".join(_LATEX.get(each, each) for each in text)


def _latex_number(text: str, best: bool) -> str:
    number = re.sub(r"^(-?[\d.]+)e([+-]?)0?(\d+)$", _latex_power, text)
    if not number:
        return "--"
    return rf"\textbf{{\boldmath ${number}$}}" if best else f"${number}$"


def _latex_power(match: re.Match[str]) -> str:
    return rf"{match[1]} \times 10^{{{match[2].replace('+', '')}{match[3]}}}"


def _shortened(name: str, length: int = 40) -> str:
    """Return the end of a long name, which tells paths apart better than their beginning."""
    return name if len(name) <= length else f"...{name[3 - length :]}"
