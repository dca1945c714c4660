"""Texts of a study's tables: a metric's mean over seeds and its meaning, how many seeds, and the command of a row."""

import shlex
from collections.abc import Sequence

from dipo_pl.commands.study.results import Results
from dipo_pl.commands.study.summary import Line
from dipo_pl.report.columns import Column
from dipo_pl.report.seeds import interval_text
from dipo_pl.report.table import markdown_escaped
from dipo_pl.storage.secrets import redact_arguments


def cell_text(line: Line, column: Column) -> str:
    """Return the mean of a line's metric with its interval; empty if it was not measured."""
    values = line.values.get(column.key, {})
    if (interval := line.intervals.get(column.key)) is None:
        text = column.text(next(iter(values.values()), None))
    else:
        text = (
            column.text(interval.mean) if interval.low == interval.high else interval_text(interval, column)
        )
    # A value that is not finite is not recorded, and a mean over other seeds than the row's must not pass for the row's.
    return (
        text if len(values) in (0, len(line.seeds)) else f"{text} ({len(values)} of {len(line.seeds)} seeds)"
    )


def meanings(columns: Sequence[Column]) -> str:
    """Return a list in Markdown of what columns mean, and which of two values is better."""
    lines = (f"{each.title}: {each.meaning} ({each.better.value})" for each in columns)
    return "".join(f"- {markdown_escaped(line)}\n" for line in lines)


def seeds_text(line: Line) -> str:
    """Return the number of seeds that were measured, and of those that failed."""
    return f"{len(line.seeds)}{f', {len(line.failed)} failed' if line.failed else ''}"


def study_command(results: Results, row: str | None = None) -> str:
    """Return the command that makes a study, or one row of it anew in another folder."""
    name = results.study["name"]
    # Records of earlier versions have neither the config as it was given nor the threads.
    words = ["dipo-pl", "study", "--config", results.study.get("config", f"{name}.yaml")]
    if (threads := results.study.get("threads")) is not None:
        words += ["--threads", str(threads)]
    if row is not None:
        words += ["--row", row, "--name", "again"]
    elif (folder := results.study.get("folder", name)) != name:
        words += ["--name", folder]
    options = [word for key, value in results.study["options"].items() for word in (f"--{key}", str(value))]
    return shlex.join([*words, *redact_arguments(options)])
