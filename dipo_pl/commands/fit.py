"""The command `dipo-pl fit`: train a model: unlearn, or with a fine-tuning config fine-tune."""

from collections.abc import Sequence

from dipo_pl.cli.run import run
from dipo_pl.commands.tuning import tune


def fit(arguments: Sequence[str], debug: bool = False) -> int:
    """Run `fit`, with `--tune` after a search of the learning rate; return the exit code as `dipo_pl.cli.run.run` does."""
    words = [each for each in arguments if each != "--tune"]
    return run(["fit", *words], debug) if words == [*arguments] or "--help" in words else tune(words, debug)
