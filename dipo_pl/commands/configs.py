"""The command `dipo-pl configs`: list the shipped configs."""

from collections.abc import Sequence

from dipo_pl.cli.command_parser import Parser
from dipo_pl.configs import describe


def configs(arguments: Sequence[str], debug: bool = False) -> int:
    """Print name and description of every shipped config; return the exit code."""
    parser().parse_args(arguments)
    print(describe(), end="")
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    about = "List the shipped configs; `dipo-pl fit --config NAME` takes each by its bare name."
    return Parser("configs", about)
