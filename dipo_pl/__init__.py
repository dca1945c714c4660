"""dipo-pl: make a language model forget chosen data, and show that it forgot."""

from pathlib import Path

from dipo_pl.version import __version__

__all__ = ["__version__"]

# In a checkout, data_modules/, callbacks/ and configs/ stand beside this folder; in a wheel, inside it.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "data_modules" / "__init__.py").is_file():
    __path__.append(str(_root))
