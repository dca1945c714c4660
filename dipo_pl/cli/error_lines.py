"""One line of text from jsonargparse's nested messages about a configuration."""

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from dipo_pl.cli.console import near
from dipo_pl.cli.option_check import class_files

KEY = re.compile(r'Parser key "(?P<key>[^"]*)":')
SUBTYPES = re.compile(r"Subtypes: \[<class '(?P<path>[\w.]+)'>")
GIVEN = re.compile(r"Given value: (?P<value>.*)")
MISSING = re.compile(r"the following arguments are required: (?P<names>[^\n]*)")
NESTED_MISSING = re.compile(r"(?P<names>[\w. ]+?) (is|are) missing or null: ")
UNKNOWN = re.compile(
    r"Expected a dot import path string: \S|Option '.*' is not accepted|there is no (class|option) "
)
# A class of another package that needs a third one.
REQUIREMENT = re.compile(
    r"Problem with given class_path '(?P<class>[\w.]+)':\s*Requirement '(?P<package>[^']+)' not met"
)
# A default of another package's class that YAML has no form for, such as a member of an Enum.
OBJECT = re.compile(r"'cannot represent an object', <(?P<kind>\w+)\.\w+: '?(?P<value>[^'>]*)'?>")
# Lines on levels of nesting, and on alternatives (null, a file) that nobody meant.
NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|Expected a path but"
    r"|Subclass types expect one of|a class path \(str\)|a dict with|Problem with given class_path"
)


def one_line(message: str) -> str:
    """Return the key by its whole path, what is wrong with its value, the value, and what would be right."""
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
    if match := REQUIREMENT.search(message):
        return (
            f"{match['class'].rpartition('.')[2]} needs {match['package']}: pip install '{match['package']}'"
        )
    if match := OBJECT.search(message):
        of = re.search(r"class_path='[\w.]*?(\w+)'", message)
        return (
            f"{of[1] if of else 'a class'} has an option of the type {match['kind']} whose default config.yaml cannot hold: "
            f"give that option a value, such as {match['value']}"
        )
    if not keys:
        return _plain(" ".join(message.split()), base)
    # A key may be followed by its full path.
    keys = [key for key, after in zip(keys, [*keys[1:], ""], strict=True) if not after.startswith(f"{key}.")]
    if match := MISSING.search(message):
        return _missing([".".join([*keys, each]) for each in match["names"].split(", ")])
    # Other types that the key takes are no news where a class or an option does not exist.
    unknown = [each for each in causes if UNKNOWN.match(each)]
    text = " or ".join(dict.fromkeys(_plain(cause, base) for cause in unknown or causes)) or " ".join(
        message.split()
    )
    if match := NESTED_MISSING.match(text):
        return _missing([".".join([*keys, each]) for each in match["names"].split(" and ")])
    is_shown = any(each in text for each in ("(got ", "no class", "no option", "not allowed", "PYTHONPATH"))
    if given is not None and not is_shown and not given.startswith(("NestedArg", "Namespace", "[Namespace")):
        text += f" (got {given if len(given) <= 80 else given[:80] + '...'})"
    # The message on a nested value has been through here before, and begins with its own key.
    is_nested = re.match(r"[a-z_][\w.]*: ", text) is not None
    return f"{'.'.join(keys)}{'.' if is_nested else ': '}{text}"


def concrete_classes(base: type[Any]) -> list[type[Any]]:
    """Return the classes of this package that a config may name where `base` is expected."""
    found = [] if inspect.isabstract(base) else [base]
    for each in base.__subclasses__():
        found += concrete_classes(each)
    return [
        each for each in found if each.__module__.startswith("dipo_pl.") and not each.__name__.startswith("_")
    ]


def _missing(names: list[str]) -> str:
    are = "is" if len(names) == 1 else "are"
    options = " and ".join(f"--{each}" for each in names)
    return f"{' and '.join(names)} {are} missing or null: give {options}, or a --config that has it (see dipo-pl configs)"


def _plain(cause: str, base: str | None) -> str:
    if match := re.fullmatch(r"Option '(.*)' is not accepted", cause):
        return f"there is no option {match[1]!r} (--print_config shows all)"
    if match := re.fullmatch(r"Expected a dot import path string: ?(.*)", cause):
        known = _known(base, match[1])
        return f"there is no class {match[1]}{known}" if match[1] else f"name a class (got ''){known}"
    if re.match(r"Expected an instantiatable class|Not a valid subclass of", cause):
        return f"name a class first{_known(base)}"
    cause = re.sub(r"Type typing\.Callable.* expects a function or a callable class: ", "", cause)
    if match := re.match(r"Importing '(.*)' is not allowed", cause):
        return f"importing {match[1]} from a config is not allowed"
    if match := MISSING.search(cause):
        return _missing(match["names"].split(", "))
    if (match := re.match(r"No module named '(\w+)'", cause)) and Path(f"{match[1]}.py").is_file():
        return f"{match[0]}, but {match[1]}.py is in this folder: put PYTHONPATH=. before the command"
    if match := re.match(r"Unable to load config '(.*)'", cause):
        return f"must be a mapping of keys (got {match[1]})"
    cause = re.sub(r"\. Got value: Namespace\(class_path='([\w.]+)'.*", r" (got \1)", cause)
    cause = re.sub(r"\. Got value: ?(.*)", lambda found: f" (got {found[1] or repr('')})", cause)
    cause = re.sub(r"Expected a typing\.Literal\[([^\]]*)\]", r"must be one of \1", cause)
    return re.sub(r"Expected a <class '(?:[\w.]+\.)?(\w+)'>", r"must be of type \1", cause)


def _known(base: str | None, given: str = "") -> str:
    """Return the classes that could have been meant, if the base class is one of this package."""
    if base is None or not base.startswith("dipo_pl."):
        # Closer than among the classes of one base: NeptuneLogger is no slip of RunLogger.
        return f"{near(given, [*class_files()], 0.8)}: use the import path of a class (package.module.Class)"
    module, _, name = base.rpartition(".")
    names = sorted({each.__name__ for each in concrete_classes(getattr(import_module(module), name))})
    meant = near(given, names)
    return f"{meant}: use {', '.join(names)}, or the import path of your own (package.module.Class)"
