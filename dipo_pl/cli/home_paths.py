"""Paths in a parsed configuration, with `~` replaced by the home folder, whichever class takes them."""

from typing import Any

from jsonargparse import Namespace

from dipo_pl.paths import expanded


def expand_paths(settings: Namespace) -> None:
    """Replace `~` and `~name` at the start of every text, in place: also in those that other packages' classes take."""
    for name, value in vars(settings).items():
        settings[name] = _expanded(value)


def _expanded(value: Any) -> Any:
    if isinstance(value, Namespace):
        expand_paths(value)
    elif isinstance(value, list | tuple):
        return type(value)(_expanded(each) for each in value)
    return expanded(value) if isinstance(value, str) else value
