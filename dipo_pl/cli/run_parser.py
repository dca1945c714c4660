"""Parser of `fit` and `validate`: bare config names, one-line errors, help without a config."""

from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser

from dipo_pl.cli.error_lines import concrete_classes, one_line
from dipo_pl.cli.unused_constructor import without_unused_constructor
from dipo_pl.configs import resolve
from dipo_pl.errors import InputError


class ConfigFile(ActionConfigFile):
    """Action of `--config NAME`, where NAME may be the bare name of a shipped config."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Merge a config file into what was parsed before it.

        Raises:
            InputError: the file does not exist, or a key or value in it is wrong.
        """
        try:
            super().__call__(parser, cfg, str(resolve(values)), option_string)
        except (TypeError, ValueError) as error:
            raise InputError(f"in the config {values}: {one_line(str(error))}") from error


class RunParser(LightningArgumentParser):
    """Parser whose errors are InputErrors of one line, and that refuses abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("prog", "dipo-pl")
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def dump(self, cfg: Any, *args: Any, **kwargs: Any) -> str:
        """Return the configuration as text, as --print_config shows it: without a constructor that no loss uses."""
        shown = cfg.clone()
        without_unused_constructor(shown.get("model"))
        text: str = super().dump(shown, *args, **kwargs)
        return text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the parser's message as an InputError."""
        raise InputError(one_line(message)) from ex


def with_classes_for_help(words: Sequence[str], bases: Mapping[str, type[Any]]) -> list[str]:
    """Return the words with the classes before them that `--model.forget_loss.help NPO` and the like need.

    jsonargparse shows the help of an argument only once the class that has the argument is known. Without a config, the
    first class that has such an argument is taken.

    Args:
        words: command line of `fit` or `validate`.
        bases: base class of each argument of the parser whose value is a class.
    """
    names = [each.partition("=")[0].removeprefix("--") for each in words]
    asked = next((each for each in names if each.endswith(".help")), "")
    key, *path = asked.split(".")[:-1] or [""]
    if key not in bases or {key, "c", "config"} & {*names[: names.index(asked)]}:
        return [*words]
    added = []
    kinds = [bases[key]]
    for name in path:
        owner = next(
            (each for kind in kinds for each in concrete_classes(kind) if name in argument_types(each)), None
        )
        if owner is None:
            break
        added += [f"--{key}", owner.__name__]
        key, kinds = f"{key}.{name}", list(classes_of(argument_types(owner)[name]))
    return [*added, *words]


def argument_types(owner: type[Any]) -> dict[str, Any]:
    """Return the types of a class's arguments, with those that it passes on to its base classes."""
    own = [get_type_hints(vars(each)["__init__"]) for each in owner.__mro__ if "__init__" in vars(each)]
    return {name: hint for hints in reversed(own) for name, hint in hints.items() if name != "return"}


def classes_of(hint: Any) -> list[type[Any]]:
    """Return the classes of this package that a type hint allows by themselves, not as items of a list."""
    if get_origin(hint) in (Union, UnionType):
        return [found for each in get_args(hint) for found in classes_of(each)]
    return [hint] if isinstance(hint, type) and hint.__module__.startswith("dipo_pl.") else []
