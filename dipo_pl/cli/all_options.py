"""All options of `fit` and `validate`, with those of the classes that an option may name, in a plain parser."""

import argparse
from typing import Any

from dipo_pl.cli.error_lines import concrete_classes
from dipo_pl.cli.run_cli import BASES, RunCLI
from dipo_pl.cli.run_parser import argument_types, classes_of
from dipo_pl.private_names import options_of

# Deeper options, such as those of a filter of a constructor of a loss, are left out.
DEEPEST = 3


def all_options(command: str) -> argparse.ArgumentParser:
    """Return a parser with the names of all options and, where the value is a class, those of its classes.

    Args:
        command: `fit` or `validate`.
    """
    names = [
        each
        for action in options_of(RunCLI([command, "--config", "smoke.yaml"]).parser)
        for each in action.option_strings
    ]
    options: dict[str, set[str]] = {
        each: set() for each in names if each.startswith("--") and not each.endswith("help")
    }
    for key, base in BASES.items():
        _add_classes(options, f"--{key}", base)
    parser = argparse.ArgumentParser(add_help=False)
    for name, classes in options.items():
        parser.add_argument(name, choices=sorted(classes) or None, help="")
    return parser


def _add_classes(options: dict[str, set[str]], name: str, base: type[Any]) -> None:
    for each in concrete_classes(base):
        options.setdefault(name, set()).add(each.__name__)
        for argument, hint in argument_types(each).items():
            options.setdefault(f"{name}.{argument}", set())
            for kind in classes_of(hint) if name.count(".") < DEEPEST else ():
                _add_classes(options, f"{name}.{argument}", kind)
