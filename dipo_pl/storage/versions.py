"""Versions of Python and of the packages that a result depends on."""

import platform
from importlib import metadata

PACKAGES = ("torch", "lightning", "transformers", "datasets", "torchmetrics", "jsonargparse", "tokenizers")


def installed_versions(*further: str) -> dict[str, str]:
    """Return the versions by name, of further packages too."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in (*PACKAGES, *further)},
    }
