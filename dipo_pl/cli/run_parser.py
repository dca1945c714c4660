"""Parser of `fit` and `validate`: bare config names, one-line errors, help without a config."""

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, get_args, get_type_hints

from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser

from dipo_pl.cli.error_lines import concrete_classes, one_line
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
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the parser's message as an InputError."""
        raise InputError(one_line(message)) from ex


def with_classes_for_help(words: Sequence[str], bases: dict[str, type[Any]]) -> list[str]:
    """Return the words with the classes before them that `--model.forget_loss.help NPO` and the like need.

    jsonargparse shows the help of an argument only once the class that has the argument is known. Without a config, the
    first class that has such an argument is taken.

    Args:
        words: command line of `fit` or `validate`.
        bases: base class of each argument of the parser whose value is a class.
    """
    asked = next((each.partition("=")[0] for each in words if each.startswith("--") and ".help" in each), "")
    key, *path = asked.removeprefix("--").split(".")[:-1] or [""]
    if key not in bases or not path or any(each.split("=")[0] in ("-c", "--config") for each in words):
        return [*words]
    added = []
    kinds = [bases[key]]
    for name in path:
        owner = next(
            (each for kind in kinds for each in concrete_classes(kind) if name in _hints(each)), None
        )
        if owner is None:
            break
        added += [f"--{key}", owner.__name__]
        key, kinds = f"{key}.{name}", list(_classes(_hints(owner)[name]))
    return [*added, *words]


def _hints(owner: type[Any]) -> dict[str, Any]:
    return get_type_hints(owner.__init__)


def _classes(hint: Any) -> Iterator[type[Any]]:
    """Yield the classes that a type hint is made of, such as a class or None."""
    if isinstance(hint, type):
        yield hint
    for each in get_args(hint):
        yield from _classes(each)
