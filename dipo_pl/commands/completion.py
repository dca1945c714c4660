"""The command `dipo-pl completion`: print a script that completes commands and options in a shell."""

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from dipo_pl.cli.command_parser import Parser
from dipo_pl.commands import commands
from dipo_pl.configs import shipped
from dipo_pl.errors import InputError

SHELLS = ("bash", "zsh")
DESCRIPTION = """\
Print a script that completes commands, options, classes and names of configs. For bash:

  dipo-pl completion bash > ~/.local/share/bash-completion/completions/dipo-pl

For zsh, with a folder of $fpath:

  dipo-pl completion zsh > ~/.zfunc/_dipo-pl"""
# Functions of the script that complete the value of --config: shipped configs, and files of the working directory.
CONFIGS = {
    "bash": """_dipo_pl_configs() {{ compgen -W "{names}" -- "$1"; compgen -o plusdirs -f -X '!*.yaml' -- "$1"; }}""",
    "zsh": """_dipo_pl_configs() {{ compadd -- {names}; _files -g "*.yaml"; }}""",
}


def completion(arguments: Sequence[str], debug: bool = False) -> int:
    """Print the completion script of a shell; return the exit code."""
    shell = parser().parse_args(arguments).shell
    try:
        import shtab
    except ImportError:
        raise InputError("completion needs the package shtab: pip install shtab") from None
    # Late: building the parser of `fit` imports Lightning.
    from dipo_pl.cli.all_options import all_options
    from dipo_pl.private_names import options_of

    whole = argparse.ArgumentParser(prog="dipo-pl")
    whole.add_argument("--version", action="store_true", help="print the version")
    parsers = whole.add_subparsers()
    for name, command in commands().items():
        module = import_module(command.function.partition(":")[0])
        options = module.parser() if hasattr(module, "parser") else all_options(name)
        settings: dict[str, Any] = {"parents": [options], "add_help": False, "conflict_handler": "resolve"}
        added = parsers.add_parser(name, help=command.help, **settings)
        for each in options_of(added):
            if "--config" in each.option_strings:
                each.complete = dict.fromkeys(SHELLS, "_dipo_pl_configs")  # type: ignore[attr-defined]
    names = " ".join(shipped())
    print(shtab.complete(whole, shell, preamble=CONFIGS[shell].format(names=names)))
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("completion", DESCRIPTION)
    made.add_argument("shell", choices=SHELLS, help="the shell")
    return made
