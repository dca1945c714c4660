"""The command `dipo-pl fit`: train a model: unlearn, or with a fine-tuning config fine-tune."""

from collections.abc import Sequence

from dipo_pl.cli.run import run


def fit(arguments: Sequence[str], debug: bool = False) -> int:
    """Run `fit`; return the exit code as `dipo_pl.cli.run.run` does."""
    return run(["fit", *arguments], debug)
