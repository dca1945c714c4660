"""What the commands beside Lightning's share: a parser whose errors are one line, and telling them."""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from dipo_pl.cli.console import cause_of
from dipo_pl.errors import InputError


class Parser(argparse.ArgumentParser):
    """Of `dipo-pl COMMAND`; its `parse_known_args` leaves all other options to the run that is started."""

    def __init__(self, command: str, description: str, **options: Any) -> None:
        super().__init__(prog=f"dipo-pl {command}", description=description, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message} (--help tells what it takes)")


def folder(given: str) -> Path:
    """The type of an option that names a folder to write to: an empty text would be the working directory."""
    if not given:
        raise ValueError
    return Path(given)


def one_line_errors(command: Callable[[], int], debug: bool) -> int:
    """The command's exit code, or one line and 2 where what was given is wrong, 1 where something else failed."""
    try:
        return command()
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        cause, given = cause_of(error)
        kind = "" if given else f"{type(error).__name__}: "
        print(f"dipo-pl: {'error' if given else 'failed'}: {kind}{cause}", file=sys.stderr)
        return 2 if given else 1


def as_words(settings: Mapping[str, Any]) -> list[str]:
    """`--key value` of each that is not None, in this order: what comes later overlays what came before."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return [word for key, text in texts.items() if settings[key] is not None for word in (f"--{key}", text)]
