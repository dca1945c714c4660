"""dipo-pl: make a language model forget chosen data, and show that it forgot."""

from dipo_pl.version import __version__

__all__ = ["__version__"]
