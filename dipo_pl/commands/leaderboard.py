"""The command `dipo-pl leaderboard`: write one page with the tables of several studies, best methods first."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from dipo_pl.cli.command_parser import Parser
from dipo_pl.errors import InputError

if TYPE_CHECKING:
    from dipo_pl.commands.study.results import Results
    from dipo_pl.commands.study.summary import Summary
    from dipo_pl.report.columns import Column
    from dipo_pl.report.table import Table

DESCRIPTION = """\
Write a page in Markdown with a table for each study: its methods in order, the means over seeds with intervals, and the
command that makes each row anew. RESULTS is the folder of a study's results.json.

Methods stand in the order of their overall score if the study audited its runs, else of the mean log10 of Forget Quality.
A method that lacks it for a seed of the study has no rank: the mean of the seeds that went well would flatter it.
Methods of different studies start from different models, so their values are not comparable."""

EXAMPLES = """\
examples:
  dipo-pl leaderboard docs/results/tofu docs/results/smollm2 --output docs/leaderboard.md
  dipo-pl leaderboard runs/study_smoke"""

# Metrics that a reader compares methods by, in the order of the columns.
KEYS = (
    "overall_score", "memorization_score", "privacy_score", "utility_score", "forget_quality", "forget_quality_log10_p",
    "model_utility", "forget_probability", "forget_rouge_l_recall", "relearning_area", "priv_leak",
)  # fmt: skip
ORDERS = ("overall_score", "forget_quality_log10_p")


def leaderboard(arguments: Sequence[str], debug: bool = False) -> int:
    """Write the page and print its tables; return the exit code."""
    given = parser().parse_args(arguments)
    # These load pandas, which takes a second.
    from dipo_pl.commands.study.results import Results
    from dipo_pl.commands.study.summary import summary_of
    from dipo_pl.report.table import terminal_width
    from dipo_pl.storage.files import write_text

    studies = []
    for place, each in enumerate(given.results):
        if not Path(each).is_dir():
            raise InputError(f"{each} is no folder: give the folder of a study's results.json")
        if any(Path(each).samefile(other) for other in given.results[:place]):
            raise InputError(f"{each} is given twice: leave one of them out")
        results = Results.read(Path(each))
        summary = summary_of(results) if results.runs else None
        if summary is None or not any(line.name in results.study["rows"] for line in summary.lines):
            raise InputError(
                f"{results.path} has no finished run of a table: give the folder of a study's results.json"
            )
        studies.append((results, summary))
    write_text(given.output, as_markdown(studies))
    for results, summary in studies:
        print(f"{table_of(results, summary, commands=False).to_text(terminal_width())}\n")
    print(f"leaderboard: {given.output}")
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("leaderboard", DESCRIPTION, epilog=EXAMPLES)
    made.add_argument("results", nargs="+", metavar="RESULTS", help="folder of a study's results.json")
    output = "file of the page (default: leaderboard.md)"
    made.add_argument(
        "--output", "-o", type=Path, default=Path("leaderboard.md"), metavar="FILE", help=output
    )
    return made


def as_markdown(studies: "Sequence[tuple[Results, Summary]]") -> str:
    """Return the page."""
    from dipo_pl.commands.study.cells import meanings

    parts = [
        "# Leaderboard\n",
        "Made by `dipo-pl leaderboard` from the records of studies; do not edit. On the site, a click on a column's head "
        "sorts by it.\n",
    ]
    for results, summary in studies:
        table = table_of(results, summary)
        explained = meanings(columns_of_interest(summary))
        parts += [f"## {results.study['name']}\n", table.to_markdown(), explained]
    return "\n".join(parts)


def columns_of_interest(summary: "Summary") -> "list[Column]":
    """Return the columns by which methods are compared, of those that a method of the study has."""
    from dipo_pl.commands.study.summary import RETAIN_ONLY, TARGET, study_column

    measured = {
        key for line in summary.lines if line.name not in (TARGET, RETAIN_ONLY) for key in line.values
    }
    return [study_column(key) for key in KEYS if key in measured]


def table_of(results: "Results", summary: "Summary", commands: bool = True) -> "Table":
    """Return the table of a study: its methods, best first, then the models that they are compared with."""
    from dipo_pl.commands.study.cells import cell_text, seeds_text, study_command
    from dipo_pl.commands.study.summary import study_column
    from dipo_pl.report.intervals import METHOD
    from dipo_pl.report.table import Table

    columns = columns_of_interest(summary)
    methods = [each for each in summary.lines if each.name in results.study["rows"]]
    order = next((key for key in ORDERS if any(key in each.values for each in methods)), ORDERS[-1])
    seeds = len(results.study["file"]["seeds"])
    has = {each.name: len(each.values.get(order, {})) for each in methods}
    complete = [each for each in methods if has[each.name] == seeds]
    ranked = sorted(complete, key=lambda line: -fmean(line.values[order].values()))
    unranked = [each for each in methods if each not in ranked]
    lines = [*ranked, *unranked, *(each for each in summary.lines if each not in methods)]
    rows = [
        [
            str(1 + ranked.index(line)) if line in ranked else "",
            line.name,
            seeds_text(line),
            *(cell_text(line, each) for each in columns),
            *([study_command(results, line.name) if line in methods else ""] if commands else []),
        ]
        for line in lines
    ]
    title = study_column(order).title
    caption = f"In the order of {title}. Mean [low, high]: {METHOD}; a single seed has no interval."
    if unranked:
        lack = ", ".join(f"{each.name} ({has[each.name]} of {seeds})" for each in unranked)
        caption += f" Without a rank, for lack of {title} for each seed: {lack}."
    head = ["rank", "method", "seeds", *(each.title for each in columns), *(["command"] if commands else [])]
    return Table(f"Study {results.study['name']}", caption, head, rows, labels=3)
