"""The command `dipo-pl configs`: list the shipped configs."""

from collections.abc import Sequence

from dipo_pl.cli.command_parser import Parser, one_line_errors
from dipo_pl.configs import describe


def configs(arguments: Sequence[str], debug: bool = False) -> int:
    """Print name and description of every shipped config; return the exit code."""
    return one_line_errors(lambda: _configs(arguments), debug)


def _configs(arguments: Sequence[str]) -> int:
    parser().parse_args(arguments)
    print(describe(), end="")
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    return Parser(
        "configs", "List the shipped configs; `dipo-pl fit --config NAME` takes each by its bare name."
    )
