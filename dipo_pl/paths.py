"""Paths as users give them: the rules that every option that names a file or a folder follows."""

import re
from pathlib import Path

from dipo_pl.errors import InputError

# Nothing else is replaced: a `$` may be part of a name.
HOME = re.compile(r"~[\w.-]*(/|$)")


def expanded(given: str) -> str:
    """Return a path or hub id with `~` or `~name` at its start replaced by that home folder.

    Raises:
        InputError: there is no user of this name: a folder named `~name` would be made, or looked for.
    """
    if not HOME.match(given):
        return given
    try:
        return str(Path(given).expanduser())
    except RuntimeError:
        raise InputError(
            f"{given!r} begins with ~, and there is no such home folder: give the whole path, or ./{given}"
        ) from None


def expanded_word(word: str) -> str:
    """Return a word of a command line with its path expanded, also in `--option=~/path`, which shells leave alone."""
    name, given, value = word.partition("=")
    return f"{name}={expanded(value)}" if given and name.startswith("--") else expanded(word)
