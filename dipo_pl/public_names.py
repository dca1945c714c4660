"""Names of a package that are imported at their first use, as the package's stub `__init__.pyi` lists them."""

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

_IMPORT = re.compile(r"from (\S+) import (\w+) as \2")


def modules_of(package: str) -> dict[str, str]:
    """Return the module of each public name of a package, from the lines `from MODULE import NAME as NAME` of its stub."""
    folder = Path(__file__).parent.joinpath(*package.split(".")[1:])
    stub = (folder / "__init__.pyi").read_text(encoding="utf-8")
    return {name: module for module, name in _IMPORT.findall(stub)}


def lazy(package: str) -> tuple[list[str], Callable[[str], Any]]:
    """Return `__all__` and `__getattr__` of a package, so that its names load nothing before they are used."""
    modules = modules_of(package)

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if modules[name] == package:
            return import_module(f"{package}.{name}")
        return getattr(import_module(modules[name]), name)

    return sorted(modules), get
