"""Settings of the trainer that do not go with the rest of a run, each refused with what to set instead."""

from pydoc import locate
from typing import Any

from jsonargparse import Namespace

from dipo_pl.errors import InputError, check_count, check_number

# Settings, the only values that they can have here, and why with what to do instead.
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "overfit_batches": (
        (0, None),
        "the rows of each epoch are dealt anew, so that a batch is never the same: put the few rows into data.forget, or "
        "set trainer.limit_train_batches",
    ),
    "barebones": ((False, None), "a run is measured, logged and saved: leave it out"),
    "enable_checkpointing": (
        (True, None),
        "a run resumes from its last checkpoint: to save fewer, set last_checkpoint.every_n_epochs and .previous",
    ),
    "use_distributed_sampler": ((False,), "the data module deals rows out to devices itself: leave it out"),
    "default_root_dir": ((None,), "the run folder is output_dir/name: set --output_dir and --name"),
}

# Callbacks that change what a run trains, beside its own measuring, saving and export, by the names of their classes.
CALLBACKS = {
    "StochasticWeightAveraging": "averages weights that evaluation, checkpoints and export do not know of: leave it out",
    "WeightAveraging": "averages weights that evaluation, checkpoints and export do not know of: leave it out",
    "ModelPruning": "replaces the parameters that a checkpoint holds: prune the exported model instead",
    "BatchSizeFinder": "trains before the first evaluation: set data.batch_size (dipo-pl plan tells what fits)",
    "LearningRateFinder": "trains before the first evaluation: set model.optimizer.lr",
    "BaseFinetuning": "freezes layers of its own: set model.policy.adapter to train a part of the weights",
}


def check_trainer(trainer: Namespace) -> None:
    """Refuse settings that Lightning would fail with, or leave without effect.

    Raises:
        InputError: there is such a setting.
    """
    for name, (allowed, reason) in FIXED.items():
        if trainer[name] not in allowed:
            raise InputError(f"trainer.{name} is not supported (got {trainer[name]}): {reason}")
    check_count("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches)
    check_number("trainer.gradient_clip_val", trainer.gradient_clip_val, minimum=0)
    for name in ("val_check_interval", "check_val_every_n_epoch"):
        if isinstance(value := trainer[name], int | float) and value <= 0:
            raise InputError(f"trainer.{name} must be greater than 0 (got {value})")
    for unit in ("epochs", "steps"):
        least, most = trainer[f"min_{unit}"], trainer[f"max_{unit}"]
        if least is not None and most is not None and least > most >= 0:
            raise InputError(
                f"trainer.min_{unit} {least} is more than trainer.max_{unit} {most}: leave out one of them"
            )
    if trainer.limit_train_batches == 0:
        raise InputError(
            "trainer.limit_train_batches 0 trains nothing: use dipo-pl validate to measure a model"
        )
    given = trainer.callbacks if isinstance(trainer.callbacks, list | tuple) else [trainer.callbacks]
    for path in (each.get("class_path") for each in given if isinstance(each, Namespace)):
        for base in getattr(locate(path), "__mro__", ()):
            if base.__name__ in CALLBACKS and base.__module__.startswith("lightning."):
                raise InputError(f"trainer.callbacks: {path.rpartition('.')[2]} {CALLBACKS[base.__name__]}")
    share = trainer.limit_val_batches
    if isinstance(share, float) and 0 < share < 1:
        raise InputError(
            f"trainer.limit_val_batches {share} would measure some rows of each set, and then nothing is reported: set "
            "data.evaluation_rows to measure fewer"
        )
