"""The command `dipo-pl validate`: evaluate a model without training it."""

from collections.abc import Sequence

from dipo_pl.cli.run import run


def validate(arguments: Sequence[str], debug: bool = False) -> int:
    """Run `validate`; return the exit code as `dipo_pl.cli.run.run` does."""
    return run(["validate", *arguments], debug)
