"""What the two commands share: their arguments, those of the runs they start, errors of one line."""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from dipo_pl.errors import InputError


class Parser(argparse.ArgumentParser):
    """Its `parse_known_args` leaves all other options to the run that is started."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"dipo-pl {command}", description=description, allow_abbrev=False)
        self.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run")

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


def as_words(settings: Mapping[str, Any]) -> list[str]:
    """`--key value` of each that is not None, in this order: what comes later overlays what came before."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return [word for key, text in texts.items() if settings[key] is not None for word in (f"--{key}", text)]
