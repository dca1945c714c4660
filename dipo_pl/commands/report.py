"""The command `dipo-pl report`: compare runs in a table; with --output also in pages and plots."""

import sys
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from dipo_pl.cli.command_parser import Parser, folder
from dipo_pl.errors import InputError, WriteError
from dipo_pl.report.contents import Report, read_report
from dipo_pl.report.drawing import HOW_TO_GET_PLOTS, drawable, write_png
from dipo_pl.report.formats import as_csv, as_json, as_latex, as_markdown, as_text
from dipo_pl.report.page import as_html
from dipo_pl.report.plots import all_plots
from dipo_pl.report.table import terminal_width
from dipo_pl.report.texts import Texts
from dipo_pl.storage.files import write_text

# File of each format, and the function that writes it.
_FORMATS: dict[str, tuple[str, Callable[[Report], str]]] = {
    "html": ("report.html", as_html),
    "markdown": ("report.md", as_markdown),
    "csv": ("report.csv", as_csv),
    "json": ("report.json", as_json),
    "latex": ("report.tex", as_latex),
}
# One file for each plot; and a folder for each run, not a default, since it holds results of one convention only.
_PNG, _OPEN_UNLEARNING = "png", "open_unlearning"


_EXAMPLES = """\
examples:
  dipo-pl report runs/tofu runs/tofu-npo runs/tofu-retain90       print the table
  dipo-pl report runs/* --output report                           write all formats and plots: open report/report.html
  dipo-pl report runs/* --format markdown > table.md              print one format
  dipo-pl report runs/tofu TOFU_EVAL.json --retain-only llama2-7b_retain90
                                                                  compare with results of open-unlearning or TOFU
"""


def report(arguments: Sequence[str], debug: bool = False) -> int:
    """Print the comparison of some runs, and write what is asked for; return the exit code.

    Runs that cannot be read are left out, with one line each on standard error.
    """
    given = parser().parse_args(arguments)
    formats = _formats(given.format)
    printed = formats is None or (len(formats) == 1 and formats[0] in _FORMATS.keys() - {"html"})
    if given.output is None and not printed:
        raise InputError(
            f"--format {given.format} needs --output DIR (only one of markdown, csv, json and latex is printed without it)"
        )
    found = read_report(given.runs, given.retain_only, given.unfinished, Texts(given.texts))
    for line in found.left_out:
        print(f"dipo-pl: left out: {line}", file=sys.stderr)
    if given.output is not None:
        written = _write(found, given.output, formats or [*_FORMATS, _PNG])
        print("\n".join([as_text(found, terminal_width()), *(f"wrote {path}" for path in written)]))
        if found.texts.left_out:
            print(f"{found.texts.left_out}.")
    else:
        text = as_text(found, terminal_width()) if formats is None else _FORMATS[formats[0]][1](found)
        print(text, end="")
    return 0


def _write(found: Report, folder: Path, formats: Sequence[str]) -> list[Path]:
    written = []
    try:
        # This format comes first, since it may refuse a convention.
        if _OPEN_UNLEARNING in formats:
            # Imports torch.
            from dipo_pl.evaluation import open_unlearning

            for run in found.runs:
                written += open_unlearning.write(run.result, folder / run.name)
        for name in formats:
            if name in _FORMATS:
                file, write = _FORMATS[name]
                write_text(folder / file, write(found))
                written.append(folder / file)
        if _PNG in formats and drawable():
            for plot in chain.from_iterable(all_plots(found).values()):
                path = folder / f"{plot.name}.png"
                write_png(path, plot)
                written.append(path)
    except (OSError, WriteError) as error:
        why = f"cannot write to --output {folder} ({error.strerror})"
        raise InputError(f"{why}: give another folder") from error
    if {_PNG, "html"} & {*formats} and not drawable():
        print(f"dipo-pl: {HOW_TO_GET_PLOTS}", file=sys.stderr)
    return written


def _formats(given: str | None) -> list[str] | None:
    if given is None:
        return None
    known = [*_FORMATS, _PNG, _OPEN_UNLEARNING]
    names = [each.strip() for each in given.split(",") if each.strip()]
    if not names or not {*names} <= {*known}:
        raise InputError(
            f"--format must name some of {', '.join(known)}, separated by commas (got {given!r})"
        )
    return list(dict.fromkeys(names))


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    about = "Compare runs: a table in the terminal, and with --output files and a page."
    made = Parser("report", about, epilog=_EXAMPLES)
    made.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN",
        help="run folder, folder of a sequence of requests, evaluation file of a run, TOFU_EVAL.json or MUSE_EVAL.json of "
        "open-unlearning, or TOFU's aggregated log",
    )  # fmt: skip
    output = "folder to write files to; without it the table is printed"
    made.add_argument("--output", type=folder, metavar="DIR", help=output)
    made.add_argument(
        "--format", metavar="LIST",
        help=f"separated by commas, of {', '.join(_FORMATS)} and {_PNG} (plots); with --output all of these by default; "
        f"{_OPEN_UNLEARNING} writes TOFU_EVAL.json and TOFU_SUMMARY.json for each run of that convention",
    )  # fmt: skip
    made.add_argument(
        "--retain-only", type=Path, metavar="RUN",
        help="run of the model that never saw the forget set, if the configs do not name it",
    )  # fmt: skip
    unfinished = "include runs that are in progress or have failed"
    made.add_argument("--unfinished", action="store_true", help=unfinished)
    made.add_argument(
        "--texts", choices=[str(each) for each in Texts], default=str(Texts.REDACTED),
        help="of questions, true answers and generated answers, show none (row numbers and metrics only), each word as a "
        "mask with what is shared with the true answer marked, or all; in every format (default: redacted)",
    )  # fmt: skip
    return made
