"""Check for nulls where a class takes none: jsonargparse accepts null for every argument of a class_path."""

from pydoc import locate
from typing import Any, get_args

from jsonargparse import Namespace

from dipo_pl.cli.run_parser import argument_types
from dipo_pl.errors import InputError


def refuse_nulls(value: Any, key: str = "") -> None:
    """Refuse a null for an argument of a class of this package whose type does not allow it.

    Args:
        value: parsed configuration, or a value in it.
        key: key of the value.

    Raises:
        InputError: there is such a null.
    """
    if isinstance(value, list):
        for number, each in enumerate(value):
            refuse_nulls(each, f"{key}[{number}]")
    if not isinstance(value, Namespace):
        return
    types = _types(value.get("class_path"))
    arguments = value.get("init_args") if "class_path" in value else value
    for name, each in vars(arguments or Namespace()).items():
        path = f"{key}.{name}".removeprefix(".")
        if each is None and not _allows_none(types.get(name, Any)):
            raise InputError(f"{path} must not be null: give a value, or leave it out")
        refuse_nulls(each, path)


def _types(class_path: str | None) -> dict[str, Any]:
    named = None if class_path is None else locate(class_path)
    if not isinstance(named, type) or not named.__module__.startswith("dipo_pl."):
        return {}
    return argument_types(named)


def _allows_none(hint: Any) -> bool:
    return hint is Any or type(None) in get_args(hint)
