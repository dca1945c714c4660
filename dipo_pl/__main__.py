"""Entry point of `dipo-pl`: finds the command and runs it; imports nothing heavy before."""

import sys
from collections.abc import Sequence
from pkgutil import resolve_name

from dipo_pl.cli.standard_streams import patient_streams
from dipo_pl.commands import commands
from dipo_pl.paths import expanded_word
from dipo_pl.version import __version__

HELP = """\
dipo-pl {version}: make a language model forget chosen data, and show that it forgot.

usage: dipo-pl COMMAND ...

{commands}

options of every command:
  --help       what the command takes
  --debug      print the traceback of an error, not only one line
  --version    print the version (without a command)

examples:
  dipo-pl demo                                       train, unlearn, evaluate: all of it offline, in minutes on a CPU
  dipo-pl fit --config tofu.yaml --config npo.yaml   a config overlays those before it; a bare name is looked for in
                                                     the working directory, then among the shipped configs
  dipo-pl fit --config tofu.yaml --model.forget_loss NPO --model.forget_loss.beta 0.1 --name my-run
  dipo-pl fit --model.help Unlearning                arguments of a class (--data.help TOFU, --model.forget_loss.help NPO)
  dipo-pl fit --tune --config jsonl.yaml ...         learning rate found by short runs on your rows first
  dipo-pl fit --config tofu.yaml --print_config      the resulting configuration, without running it
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 2 if the input is wrong, 1 if the command failed, 128 + n if signal n ended it.
    """
    with patient_streams():
        try:
            return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        except KeyboardInterrupt:
            print("dipo-pl: interrupted", file=sys.stderr)
            return 130


def _dispatch(given: list[str]) -> int:
    name, *arguments = [expanded_word(each) for each in given if each != "--debug"] or ["--help"]
    known = commands()
    if name in ("-h", "--help", "help"):
        table = "\n".join(f"  {each:<14}{command.help}" for each, command in known.items())
        print(HELP.format(version=__version__, commands=table), end="")
        return 0
    if name in ("--version", "version"):
        print(__version__)
        return 0
    if name not in known:
        from dipo_pl.cli.console import near, say

        say("error", f"no command {name!r}{near(name, list(known))}: see dipo-pl --help")
        return 2
    # Late: without a command, nothing of this is needed.
    from dipo_pl.cli.command_parser import one_line_errors
    from dipo_pl.cli.console import quieten

    quieten()
    debug = "--debug" in given
    return one_line_errors(lambda: resolve_name(known[name].function)(arguments, debug), debug)


if __name__ == "__main__":
    sys.exit(main())
