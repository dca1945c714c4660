"""What the commands beside Lightning's share: a parser whose errors are one line, and telling them."""

import argparse
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from dipo_pl.errors import InputError


class Parser(argparse.ArgumentParser):
    """Of `dipo-pl COMMAND`; its `parse_known_args` leaves all other options to the run that is started."""

    def __init__(self, command: str, description: str, **options: Any) -> None:
        super().__init__(prog=f"dipo-pl {command}", description=description, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message} (--help tells what it takes)")


def one_line_errors(command: Callable[[], int], debug: bool) -> int:
    """The command's exit code, or 2 and one line where what was given is wrong."""
    try:
        return command()
    except InputError as error:
        if debug:
            traceback.print_exception(error)
        print(f"dipo-pl: error: {error}", file=sys.stderr)
        return 2
