"""The command `dipo-pl report`: compare runs in a table; with --output also in pages and plots."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dipo_pl.cli.command_parser import Parser, folder
from dipo_pl.errors import InputError, WriteError
from dipo_pl.report.contents import Report, read_report
from dipo_pl.report.latex import as_latex
from dipo_pl.report.machine import as_csv, as_json
from dipo_pl.report.markdown import as_markdown
from dipo_pl.report.page import as_html
from dipo_pl.report.pictures import HOW_TO_GET_PICTURES, all_pictures, drawable, write_png
from dipo_pl.report.text import as_text, terminal_width
from dipo_pl.storage.files import write_text

# The file of each format, and what writes it.
_FORMATS: dict[str, tuple[str, Callable[[Report], str]]] = {
    "html": ("report.html", as_html),
    "markdown": ("report.md", as_markdown),
    "csv": ("report.csv", as_csv),
    "json": ("report.json", as_json),
    "latex": ("report.tex", as_latex),
}
_PICTURES = "png"
# A folder a run; only where it is asked for, since other conventions have no place in it.
_OPEN_UNLEARNING = "open_unlearning"

_EXAMPLES = """\
examples:
  dipo-pl report runs/tofu runs/tofu-npo runs/tofu-retain90       the table
  dipo-pl report runs/* --output report                           all formats, pictures too: open report/report.html
  dipo-pl report runs/* --format markdown > table.md              one format, on standard output
  dipo-pl report runs/tofu TOFU_EVAL.json --retain-only llama2-7b_retain90
                                                                  beside results of open-unlearning or TOFU
"""


def report(arguments: Sequence[str], debug: bool = False) -> int:
    """Prints the table of some runs, and writes what is asked for; returns the exit code.

    Runs that cannot be read are named on standard error, one line each, and left out.
    """
    given = parser().parse_args(arguments)
    formats = _formats(given.format)
    if (
        given.output is None
        and formats is not None
        and (len(formats) > 1 or not {*formats} <= _FORMATS.keys() - {"html"})
    ):
        raise InputError(
            f"--format {given.format} makes files: say by --output in which folder (without it, one of markdown, csv, "
            "json and latex is printed)"
        )
    found = read_report(given.runs, given.retain_only, given.unfinished)
    for line in found.left_out:
        print(f"dipo-pl: left out: {line}", file=sys.stderr)
    width = terminal_width()
    if given.output is None:
        print(as_text(found, width) if formats is None else _FORMATS[formats[0]][1](found), end="")
        return 0
    written = _write(found, given.output, formats or [*_FORMATS, _PICTURES])
    print(as_text(found, width))
    for path in written:
        print(f"wrote {path}")
    return 0


def _write(found: Report, folder: Path, formats: Sequence[str]) -> list[Path]:
    written = []
    try:
        # First, since it may refuse a convention.
        if _OPEN_UNLEARNING in formats:
            from dipo_pl.evaluation import open_unlearning

            for run in found.runs:
                written += open_unlearning.write(run.result, folder / run.name)
        for name in formats:
            if name in _FORMATS:
                file, write = _FORMATS[name]
                write_text(folder / file, write(found))
                written.append(folder / file)
        if _PICTURES in formats and drawable():
            for picture in (each for group in all_pictures(found) for each in group.pictures):
                path = folder / f"{picture.name}.png"
                write_png(picture, path)
                written.append(path)
    except (OSError, WriteError) as error:
        raise InputError(
            f"cannot write to --output {folder} ({error.strerror}): give another folder"
        ) from error
    if {_PICTURES, "html"} & {*formats} and not drawable():
        print(f"dipo-pl: {HOW_TO_GET_PICTURES}", file=sys.stderr)
    return written


def _formats(given: str | None) -> list[str] | None:
    if given is None:
        return None
    known = [*_FORMATS, _PICTURES, _OPEN_UNLEARNING]
    names = [each.strip() for each in given.split(",") if each.strip()]
    for name in names:
        if name not in known:
            raise InputError(f"--format has no {name!r}: choose of {', '.join(known)}")
    if not names:
        raise InputError(f"--format names nothing: choose of {', '.join(known)}")
    return list(dict.fromkeys(names))


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser(
        "report",
        "What runs found, side by side: a table in the terminal, and by --output files and a page.",
        epilog=_EXAMPLES,
    )
    made.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run folder, folder of a sequence of requests, evaluation file of a run, TOFU_EVAL.json of open-unlearning, or "
        "TOFU's aggregated log",
    )
    made.add_argument(
        "--output",
        type=folder,
        metavar="DIR",
        help="folder to write files to; without it the table is printed",
    )
    made.add_argument(
        "--format",
        metavar="LIST",
        help=f"with commas between, of {', '.join(_FORMATS)} and {_PICTURES} (pictures); with --output all of these by "
        f"default; {_OPEN_UNLEARNING} writes TOFU_EVAL.json and TOFU_SUMMARY.json, a folder a run, of that convention",
    )
    made.add_argument(
        "--retain-only",
        type=Path,
        metavar="RUN",
        help="which is the model that never saw the forget set, where the configs do not tell",
    )
    made.add_argument(
        "--unfinished", action="store_true", help="take also runs that are still going on or have failed"
    )
    return made
