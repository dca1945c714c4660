"""What a config may name: classes, of the kind that the key takes, and nothing else that can be called."""

from collections.abc import Iterator
from pydoc import locate
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader, set_loader, set_parsing_settings

from dipo_pl.config_text import refuse_what_nobody_means
from dipo_pl.errors import InputError

_load = get_loader("yaml")


def guard_configs() -> None:
    """Closes what jsonargparse leaves open: keys of any type that make objects, and modules that run commands."""
    set_parsing_settings(import_path_denylist=[], instantiate_subclass_spec_in_any=False)
    set_loader("yaml", _load_setting, (yaml.YAMLError,))


def _load_setting(text: str) -> Any:
    refuse_what_nobody_means(text)
    # A null on the command line reaches the class that it is an argument of as Python writes it.
    return None if text == "None" else _load(text)


def refuse_functions(settings: Namespace) -> None:
    """
    Raises:
        InputError: a key names a function, which instantiating the config would call, or its class_path does.
    """
    for key, value in _leaves(settings, ""):
        named = locate(value) if key.endswith("class_path") else value
        # jsonargparse's own paths of files can be called, too.
        if callable(named) and not isinstance(named, type) and not hasattr(named, "__fspath__"):
            name = f"{named.__module__}.{getattr(named, '__qualname__', type(named).__qualname__)}"
            place = key.removesuffix(".class_path").replace(".init_args", "")
            raise InputError(
                f"{place} names {name}, which is no class: a config names classes, not functions"
            )


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    # Plain mappings are values of a model's configuration, say, and nothing is made of them.
    if isinstance(value, Namespace):
        for name, each in vars(value).items():
            yield from _leaves(each, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _leaves(each, f"{key}[{number}]")
    else:
        yield key, value
