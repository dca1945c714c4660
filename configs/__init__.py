"""Shipped configs, found by their bare names."""

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from dipo_pl.errors import InputError
from dipo_pl.paths import expanded

# Configs that no longer exist, and the one to use instead.
REPLACED = {"deepspeed.yaml": "fsdp2.yaml", "fsdp.yaml": "fsdp2.yaml"}


def shipped() -> dict[str, Path]:
    """Return the path of every shipped config by name."""
    folder = Path(str(files(__name__)))
    return {path.name: path for path in sorted(folder.glob("*.yaml"))}


def resolve(name: str) -> Path:
    """Return the path of a config: a path as it is, a bare name from the working directory or the shipped configs.

    Raises:
        InputError: there is no such file.
    """
    path = Path(expanded(name))
    if not name:
        raise InputError("--config must name a config (got ''): see dipo-pl configs")
    if path.is_file():
        return path
    if path.parent == Path() and (found := shipped().get(path.name)):
        return found
    if name in REPLACED:
        raise InputError(f"the config {name} no longer exists: use {REPLACED[name]}")
    if path.parent != Path():
        raise InputError(f"no config file {name}")
    like = get_close_matches(name, shipped(), n=1)
    meant = f"; did you mean {like[0]}?" if like else ""
    raise InputError(
        f"no config {name}, neither here nor among the shipped ones (`dipo-pl configs` lists them{meant})"
    )


def describe() -> str:
    """Return one line for each shipped config: its name and its first comment."""
    lines = []
    for name, path in shipped().items():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        lines.append(f"{name:28} {first.removeprefix('#').strip()}\n")
    return "".join(lines)
