"""Configuration text, read without what nobody means: a key given twice, aliases that multiply."""

from pathlib import Path
from typing import Any

import yaml

from dipo_pl.errors import InputError

# A run with all its defaults has about two hundred.
MOST_VALUES = 100_000


def read_text(path: str | Path) -> str:
    """
    Raises:
        InputError: the file is not UTF-8.
        OSError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start}): save it as UTF-8"
        ) from None


def load_yaml(text: str) -> Any:
    """What YAML says, in plain values.

    Raises:
        yaml.YAMLError: it is no YAML, names a Python object, gives a key twice, or its aliases stand for more than
            100,000 values or for what they are in.
    """
    refuse_what_nobody_means(text)
    return yaml.safe_load(text)


def refuse_what_nobody_means(text: str) -> None:
    """Raises as `load_yaml`."""
    root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if root is not None:
        _values(root, {})


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, with its aliases written out; `known` has those of nodes seen before."""
    if id(node) in known:
        if not known[id(node)]:
            raise _error("an alias stands for what it is in", node)
        return known[id(node)]
    known[id(node)] = 0
    children = []
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            # Defaults that are merged in may be overridden, each once.
            if (
                key.value in keys
                and key.tag != "tag:yaml.org,2002:merge"
                and isinstance(key, yaml.ScalarNode)
            ):
                raise _error(f"the key {key.value!r} is given twice", key)
            if isinstance(key, yaml.ScalarNode):
                keys.add(key.value)
            children += [key, value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[id(node)] = 1 + sum(_values(each, known) for each in children)
    if known[id(node)] > MOST_VALUES:
        raise _error(f"aliases make it more than {MOST_VALUES:,} values", node)
    return known[id(node)]


def _error(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.YAMLError(f"{problem} (line {node.start_mark.line + 1})")
