"""Discovery of the classes that a config may name without their module."""

from importlib import import_module
from pkgutil import iter_modules

# The packages whose classes a run is composed of. A file added to one of them is found without an entry elsewhere.
PACKAGES = (
    "attacks", "callbacks", "data_modules", "losses", "metrics", "models", "modules", "preferences", "references",
    "steps", "strategies",
)  # fmt: skip


def import_pluggable() -> None:
    """Import every module of `PACKAGES`: jsonargparse resolves a short name among the classes that exist by then."""
    for package in PACKAGES:
        name = f"dipo_pl.{package}"
        for module in iter_modules(import_module(name).__path__):
            import_module(f"{name}.{module.name}")
