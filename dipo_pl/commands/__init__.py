"""Commands of `dipo-pl`: every module below whose docstring begins with "The command `dipo-pl NAME`: HELP"."""

import re
from dataclasses import dataclass
from pathlib import Path

_FIRST_LINE = re.compile(r'"""The command `dipo-pl (?P<name>[\w-]+)`: (?P<help>.+?)\.?(?:""")?\n')


@dataclass(frozen=True)
class Command:
    """Entry of a command, known without importing it.

    Attributes:
        function: `module:function`; the function is named like the command, takes its arguments and whether to print
            tracebacks, and returns the exit code.
        help: what the command does, in one line.
    """

    function: str
    help: str


def commands() -> dict[str, Command]:
    """Return all commands by name, read from the first line of each module."""
    folder = Path(__file__).parent
    found = {}
    for path in folder.rglob("*.py"):
        with path.open(encoding="utf-8") as file:
            line = _FIRST_LINE.fullmatch(file.readline())
        if line is not None:
            module = ".".join([__name__, *path.relative_to(folder).with_suffix("").parts])
            found[line["name"]] = Command(f"{module}:{line['name'].replace('-', '_')}", line["help"])
    return dict(sorted(found.items()))
