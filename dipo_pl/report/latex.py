"""The table as LaTeX, for the package booktabs."""

import re

from dipo_pl.report.contents import Report
from dipo_pl.report.sequences import TITLE, stage_table
from dipo_pl.report.table import Table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
} | {each: f"\\{each}" for each in "&%$#_{}"}


def as_latex(report: Report) -> str:
    """A tabular of the headline figures, the best in bold, and one a sequence; convention and notes as comments."""
    table = report.table.short
    comments = [f"Convention {report.convention}", table.marks, *report.notes]
    rows = [[_escaped(row.name), *_cells(table, index)] for index, row in enumerate(table.rows)]
    lines = _tabular(
        comments,
        f"l{'r' * len(table.columns)}",
        ["Model", *(_escaped(each.title) for each in table.columns)],
        rows,
    )
    for sequence in report.sequences:
        stages = stage_table(sequence, report.utility_figure)
        lines += _tabular(
            [f"{TITLE}: {stages.title}. {stages.caption}"],
            f"rl{'r' * len(stages.head[2:])}",
            list(map(_escaped, stages.head)),
            [
                [number, _escaped(request) or "--", *map(_number, figures)]
                for number, request, *figures in stages.rows
            ],
        )
    return "\n".join(lines) + "\n"


def _tabular(comments: list[str], columns: str, head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        *(f"% {each}" for each in comments),
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        rf"{' & '.join(head)} \\",
        r"\midrule",
        *(rf"{' & '.join(each)} \\" for each in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _cells(table: Table, row: int) -> list[str]:
    cells = []
    for column in table.columns:
        text = _number(table.text(row, column))
        cells.append(rf"\textbf{{\boldmath {text}}}" if table.is_best(row, column) else text)
    return cells


def _number(text: str) -> str:
    text = re.sub(r"^(-?[\d.]+)e([+-])0?(\d+)$", _power, text)
    return f"${text}$" if text else "--"


def _power(match: re.Match[str]) -> str:
    return rf"{match[1]} \times 10^{{{match[2].replace('+', '')}{match[3]}}}"


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(each, each) for each in text)
