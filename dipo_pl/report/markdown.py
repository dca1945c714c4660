"""The table as Markdown."""

import re

from dipo_pl.report.contents import Report
from dipo_pl.report.seeds import METHOD
from dipo_pl.report.sequences import TITLE, stage_table
from dipo_pl.report.text import interval_text


def as_markdown(report: Report) -> str:
    """The headline figures, the best in bold."""
    table = report.table.short
    lines = [f"Convention {_escaped(report.convention)}.", ""]
    lines += _lines(
        ["model", "kind", *(_escaped(each.title) for each in table.columns)],
        [
            [_escaped(row.name), row.kind]
            + [
                f"**{table.text(index, each)}**" if table.is_best(index, each) else table.text(index, each)
                for each in table.columns
            ]
            for index, row in enumerate(table.rows)
        ],
    )
    lines += ["", _escaped(table.marks), *([""] if report.notes else [])]
    lines += [f"- {_escaped(each)}" for each in report.notes]
    if report.seeds:
        shown = [each for each in table.columns if any(each.key in group.figures for group in report.seeds)]
        lines += ["", f"Several seeds: mean [low, high], {METHOD}.", ""]
        lines += _lines(
            ["figure", *(_escaped(f"{each.name} ({len(each.seeds)} seeds)") for each in report.seeds)],
            [
                [_escaped(column.title), *(interval_text(group, column.key) for group in report.seeds)]
                for column in shown
            ],
        )
    for sequence in report.sequences:
        stages = stage_table(sequence, report.utility_figure)
        lines += ["", _escaped(f"{TITLE}: {stages.title}. {stages.caption}"), ""]
        lines += _lines(list(stages.head), [list(map(_escaped, row)) for row in stages.rows])
    return "\n".join(lines) + "\n"


def _lines(head: list[str], body: list[list[str]]) -> list[str]:
    rule = [":--", *("--:" for _ in head[1:])]
    return [f"| {' | '.join(each)} |" for each in (head, rule, *body)]


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|~#$&])", r"\\\1", text)
