"""Turns jsonargparse's nested account of a configuration error into one line."""

import inspect
import re
from importlib import import_module
from typing import Any

KEY = re.compile(r'Parser key "(?P<key>[^"]*)":')
SUBTYPES = re.compile(r"Subtypes: \[<class '(?P<path>[\w.]+)'>")
GIVEN = re.compile(r"Given value: (?P<value>.*)")
# What jsonargparse says of each level, and of the alternatives (null, a file) that nobody meant.
NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|Expected a path but"
    r"|Subclass types expect one of|a class path \(str\)|a dict with|Problem with given class_path"
)


def one_line(message: str) -> str:
    """The key by its whole path, what is wrong with its value, and what would be right."""
    lines = [line.strip().removeprefix("- ").strip() for line in message.splitlines()]
    keys: list[str] = []
    causes: list[str] = []
    base = given = None
    for line in filter(None, lines):
        if match := KEY.match(line):
            keys += [match["key"]] if match["key"] not in keys[-1:] else []
        elif match := SUBTYPES.match(line):
            base = match["path"]
        elif given is None and (match := GIVEN.match(line)):
            given = match["value"]
        elif not NOISE.match(line) and line not in causes:
            causes.append(line)
    if not keys:
        return _plain(" ".join(message.split()), base)
    key = ".".join(keys)
    text = " or ".join(dict.fromkeys(_plain(cause, base) for cause in causes)) or " ".join(message.split())
    if (
        given is not None
        and "got" not in text
        and not given.startswith(("NestedArg", "Namespace"))
        and "no class" not in text
    ):
        text += f", got {given if len(given) <= 80 else given[:80] + '...'}"
    # The account of a nested value has been through here already, and begins with its own key.
    nested = re.match(r"[a-z_][\w.]*: ", text) is not None
    return f"{key}{'.' if nested else ': '}{text}"


def _plain(cause: str, base: str | None) -> str:
    if match := re.fullmatch(r"Option '(.*)' is not accepted", cause):
        return f"there is no option {match[1]!r} (`--print_config` shows those there are)"
    if match := re.fullmatch(r"Expected a dot import path string: (.*)", cause):
        return f"no class {match[1]}{_known(base)}"
    if re.match(r"Expected an instantiatable class|Not a valid subclass of", cause):
        return f"name a class first{_known(base)}"
    cause = re.sub(r"Type typing\.Callable.* expects a function or a callable class: ", "", cause)
    if match := re.match(r"Importing '(.*)' is not allowed", cause):
        return f"{match[1]} is nothing that a config may name: it reaches beyond the run"
    if match := re.search(r"the following arguments are required: (.*)", cause):
        names = re.sub(r"\b(fit|validate)\.", "", match[1])
        return f"needs {names}, which is left out or null (`dipo-pl configs` lists configs to begin with)"
    if match := re.match(r"Unable to load config '(.*)'", cause):
        return f"must be a mapping of keys, got {match[1]}"
    cause = re.sub(r"\. Got value: Namespace\(class_path='([\w.]+)'.*", r", got \1", cause)
    cause = re.sub(r"\. Got value: ", ", got ", cause)
    cause = re.sub(r"Expected a typing\.Literal\[([^\]]*)\]", r"must be one of \1", cause)
    return re.sub(r"Expected a <class '(\w+)'>", r"must be a value of type \1", cause)


def _known(base: str | None) -> str:
    """The classes that could have been meant, for those of this package."""
    if base is None or not base.startswith("dipo_pl."):
        return " (`--model.help Unlearning`, `--data.help TOFU` and the like list those there are)"
    module, _, name = base.rpartition(".")
    names = sorted({each.__name__ for each in _concrete(getattr(import_module(module), name))})
    return f": use {', '.join(names)}, or the path of a class of your own (package.module.Class)"


def _concrete(base: type[Any]) -> list[type[Any]]:
    found = [] if inspect.isabstract(base) else [base]
    for each in base.__subclasses__():
        found += _concrete(each)
    return [
        each for each in found if each.__module__.startswith("dipo_pl.") and not each.__name__.startswith("_")
    ]
