"""Make a language model forget chosen data, and show that it forgot.

The names in `__init__.pyi` are the public API for notebooks and scripts. Each is imported at its first use, so that
`import dipo_pl` and `dipo-pl --version` load nothing heavy.
"""

from dipo_pl.public_names import lazy

__all__, __getattr__ = lazy(__name__)


def __dir__() -> list[str]:
    return __all__
