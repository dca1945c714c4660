"""Parser and error handling of the commands that do not run Lightning's CLI themselves."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from dipo_pl.cli.console import report_error
from dipo_pl.errors import InputError


class Parser(argparse.ArgumentParser):
    """Parser of `dipo-pl COMMAND` whose errors are one line.

    Commands that start runs call `parse_known_args` and pass the remaining options on to `fit` or `validate`.
    """

    def __init__(self, command: str, description: str, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog=f"dipo-pl {command}", description=description, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise the parser's message as an InputError."""
        raise InputError(f"{self.prog}: {message} (see {self.prog} --help)")


def folder(given: str) -> Path:
    """Return the path of an option that names a folder to write to.

    Raises:
        ValueError: `given` is empty, which would mean the working directory.
    """
    if not given:
        raise ValueError
    return Path(given)


def one_line_errors(command: Callable[[], int], debug: bool) -> int:
    """Return the exit code of a command; print an error as one line.

    Returns:
        What `command` returns; 2 if it raises an InputError, 1 if it raises another exception.
    """
    try:
        return command()
    except Exception as error:
        return report_error(error, debug)


def as_options(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as `--key value` words in their order, without those that are None."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return [word for key, text in texts.items() if settings[key] is not None for word in (f"--{key}", text)]
