"""Text files and YAML, read strictly: UTF-8, no key given twice, no aliases that multiply."""

from pathlib import Path
from typing import Any

import yaml

from dipo_pl.errors import InputError
from dipo_pl.paths import expanded

# A run with all its defaults has about two hundred.
MOST_VALUES = 100_000


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark.

    Raises:
        InputError: the file is not UTF-8.
        OSError: the file cannot be read.
    """
    return decoded(Path(expanded(str(path))).read_bytes(), path)


def decoded(content: bytes, path: str | Path) -> str:
    """Return the text of a UTF-8 file's bytes, with `\n` at the end of lines.

    Raises:
        InputError: they are not UTF-8.
    """
    return utf8(content, path).replace("\r\n", "\n").replace("\r", "\n")


def utf8(content: bytes, where: str | Path) -> str:
    """Return the text of UTF-8 bytes as it is, but for a byte order mark.

    Raises:
        InputError: they are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start}): save it as UTF-8"
        ) from None


def read_yaml(path: Path, what: str) -> Any:
    """Return the plain values of a YAML file; `what` says before its path in errors what it is.

    Raises:
        InputError: the file cannot be read, or is not such YAML as `load_yaml` takes.
    """
    try:
        return load_yaml(read_text(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"cannot read {what} {path} ({' '.join(str(error).split())})") from None


def load_yaml(text: str) -> Any:
    """Return the plain values of a YAML text.

    Raises:
        yaml.YAMLError: see `check_yaml`; or the text names a Python object.
    """
    check_yaml(text)
    return yaml.safe_load(text)


def check_yaml(text: str) -> None:
    """Refuse YAML that gives a key twice, or whose aliases stand for more than 100,000 values or for themselves.

    Raises:
        yaml.YAMLError: see above; or the text is not YAML.
    """
    root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if root is not None:
        _count(root, {})


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values of a node with its aliases expanded; `known` has those of nodes seen before."""
    if id(node) in known:
        if not known[id(node)]:
            raise _error("an alias stands for a value that it is part of", node)
        return known[id(node)]
    known[id(node)] = 0
    children = []
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                # Merged defaults may be overridden.
                if key.value in keys and key.tag != "tag:yaml.org,2002:merge":
                    raise _error(f"the key {key.value!r} is given twice", key)
                keys.add(key.value)
            children += [key, value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[id(node)] = 1 + sum(_count(each, known) for each in children)
    if known[id(node)] > MOST_VALUES:
        raise _error(f"aliases expand it to more than {MOST_VALUES:,} values", node)
    return known[id(node)]


def _error(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.YAMLError(f"{problem} (line {node.start_mark.line + 1})")
