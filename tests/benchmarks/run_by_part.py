"""Seconds of a run, by part: `python tests/benchmarks/run_by_part.py fit --config ...`, with the arguments of `dipo-pl`.

Wall time from the first import to the end of the command. A part's seconds are of its own functions, without those of other
parts that they call; imports are counted wherever they come.
"""

import builtins
import sys
import time
from typing import Any

from clock import Clock

STEPS, EVALUATIONS, FINGERPRINTS = "steps", "evaluations", "fingerprints of weights"


def parts() -> list[tuple[Any, str, str]]:
    """Owner, name and part of each function that is timed."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies import Strategy

    from dipo_pl.callbacks import export, forget_quality, manifest, weight_change
    from dipo_pl.cli import run_cli
    from dipo_pl.data_modules.forget_retain import ForgetRetain
    from dipo_pl.modules import base

    return [
        (run_cli.RunCLI, "__init__", "options and configuration"),
        (run_cli.RunCLI, "instantiate", "options and configuration"),
        (ForgetRetain, "setup", "reading rows and tokenization"),
        (base.LanguageModule, "configure_model", "loading models"),
        (base, "weights_fingerprint", FINGERPRINTS),
        (weight_change, "weights_fingerprint", FINGERPRINTS),
        (export, "tensors_fingerprint", FINGERPRINTS),
        (Strategy, "training_step", STEPS),
        (Strategy, "backward", STEPS),
        (Strategy, "optimizer_step", STEPS),
        (Strategy, "validation_step", EVALUATIONS),
        (forget_quality.ForgetQuality, "on_validation_batch_end", EVALUATIONS),
        (forget_quality.ForgetQuality, "on_validation_epoch_end", EVALUATIONS),
        (Trainer, "save_checkpoint", "checkpoints"),
        (export.Export, "on_fit_end", "export"),
        (manifest.Manifest, "on_fit_start", "manifest"),
    ]


def main(arguments: list[str]) -> int:
    clock = Clock(time.perf_counter)
    rest = clock.part("the rest: Lightning, other callbacks, files")
    # Imports are timed before `parts` makes the first of them.
    with rest, clock.timing([(builtins, "__import__", "imports")]), clock.timing(parts()):
        from dipo_pl.cli.run import run

        code = run(arguments)
    print(f"\nseconds of wall time\n{clock.lines()}")
    print(f"{'all':45}{sum(clock.taken.values()):8.1f}")
    beside = sum(taken for part, taken in clock.taken.items() if part not in (STEPS, EVALUATIONS))
    print(f"{'neither step nor evaluation':45}{beside:8.1f}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
