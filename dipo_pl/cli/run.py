"""Entry points of the command line for Python: run `fit` or `validate`, resolve a configuration, make parts of it.

Importing this module is cheap: PyTorch and Lightning, which take seconds, are imported by the functions once the options
have passed the early check.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dipo_pl.cli.command_parser import one_line_errors
from dipo_pl.cli.console import quieten
from dipo_pl.cli.option_check import check_options
from dipo_pl.errors import InputError

if TYPE_CHECKING:
    from dipo_pl.callbacks.selection_rules import SelectionRule
    from dipo_pl.cli.run_cli import RunCLI
    from dipo_pl.data_modules.forget_retain import ForgetRetain
    from dipo_pl.modules.base import LanguageModule


def run(arguments: Sequence[str], debug: bool = False) -> int:
    """Run `fit` or `validate` and print at most one error line.

    Args:
        arguments: the command and its options.
        debug: print the traceback of an error.

    Returns:
        The exit code: 0, 2 if an option or a value is wrong, 1 if the run failed, 128 + n if signal n ended it
        (130 for SIGINT, 143 for SIGTERM, 138 for SIGUSR1).
    """
    quieten()
    return one_line_errors(lambda: _run(arguments, debug), debug)


def _run(arguments: Sequence[str], debug: bool) -> int:
    check_options(arguments[1:])
    from dipo_pl.cli.session import Session

    return Session(arguments, debug).run()


def resolved(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the configuration that a command would run, as plain values; nothing of it is made.

    Raises:
        InputError: an option or value is wrong.
    """
    return _parsed(arguments).resolved


def is_finished(arguments: Sequence[str]) -> bool:
    """Return whether a `fit` with these arguments would find nothing left to do; its exported model may be missing.

    Raises:
        InputError: an option or value is wrong, or the folder holds a run with another configuration.
    """
    parsed = _parsed(arguments)
    from dipo_pl.cli.run_folder_check import check_run_folder

    return (
        check_run_folder(parsed.run_folder, parsed.command, parsed.resolved, needs_export=False) is not None
    )


def data_module(config: dict[str, Any]) -> "ForgetRetain":
    """Return the data module of a resolved configuration; raise InputError if one of its arguments is wrong."""
    made: ForgetRetain = _made("data", config)
    return made


def language_model(config: dict[str, Any]) -> "LanguageModule":
    """Return the LightningModule of a resolved configuration; its policy is not loaded.

    Raises:
        InputError: one of its arguments is wrong.
    """
    made: LanguageModule = _made("model", config)
    return made


def selection_rule(given: Any) -> "SelectionRule":
    """Return the rule that a value of `selection.rule` names; raise InputError if there is none or an argument is wrong."""
    from dipo_pl.callbacks.selection import Selection
    from dipo_pl.cli.run_parser import RunParser

    parser = RunParser()
    parser.add_lightning_class_args(Selection, "selection")
    made = parser.instantiate_classes(parser.parse_object({"selection": {"rule": given}}))["selection"].rule
    if made is None:
        raise InputError("selection.rule must name a rule (got null)")
    rule: SelectionRule = made
    return rule


def _parsed(arguments: Sequence[str]) -> "RunCLI":
    quieten()
    check_options(arguments[1:])
    from dipo_pl.cli.run_cli import RunCLI

    return RunCLI(arguments)


def _made(key: str, config: dict[str, Any]) -> Any:
    from dipo_pl.cli.run_cli import BASES
    from dipo_pl.cli.run_parser import RunParser

    parser = RunParser()
    parser.add_lightning_class_args(BASES[key], key, subclass_mode=True)
    return parser.instantiate_classes(parser.parse_object({key: config[key]}))[key]
