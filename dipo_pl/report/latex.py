"""The table as LaTeX, for the package booktabs."""

import re

from dipo_pl.report.contents import Report
from dipo_pl.report.table import Table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
} | {each: f"\\{each}" for each in "&%$#_{}"}


def as_latex(report: Report) -> str:
    """A tabular of the headline figures, the best in bold; convention and notes as comments."""
    table = report.table.short
    comments = [f"Convention {report.convention}", table.marks, *report.notes]
    head = " & ".join(["Model", *(_escaped(each.title) for each in table.columns)])
    return "\n".join(
        [
            *(f"% {each}" for each in comments),
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *(
                " & ".join([_escaped(row.name), *_cells(table, index)]) + r" \\"
                for index, row in enumerate(table.rows)
            ),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _cells(table: Table, row: int) -> list[str]:
    cells = []
    for column in table.columns:
        text = re.sub(r"^(-?[\d.]+)e([+-])0?(\d+)$", _power, table.text(row, column))
        text = f"${text}$" if text else "--"
        cells.append(rf"\textbf{{\boldmath {text}}}" if table.is_best(row, column) else text)
    return cells


def _power(match: re.Match[str]) -> str:
    return rf"{match[1]} \times 10^{{{match[2].replace('+', '')}{match[3]}}}"


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(each, each) for each in text)
