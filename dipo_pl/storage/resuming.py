"""Which checkpoint a run goes on from, and whether it can."""

from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from dipo_pl.errors import InputError
from dipo_pl.storage.checkpoint_io import check_checkpoint, read_checkpoint
from dipo_pl.storage.run_folder import RunFolder


def newest_readable(run: RunFolder, thoroughly: bool) -> Path | None:
    """The checkpoint of a run to resume from, if there is any.

    Args:
        thoroughly: whether to compare checksums.

    Raises:
        InputError: there are some, and none can be read.
    """
    errors: list[InputError] = []
    for checkpoint in run.to_resume_from:
        try:
            refuse_unreadable(checkpoint, thoroughly)
        except InputError as error:
            errors.append(error)
            continue
        if errors:
            why = str(errors[0]).rpartition(": ")[0]
            rank_zero_warn(f"{why}: going on from the one before")
        return checkpoint
    if len(errors) > 1:
        # The one before cannot be read either.
        stay = f"remove it and {run.previous_checkpoint.name} to start afresh"
        raise InputError(str(errors[0]).replace("remove it to start afresh", stay)) from errors[0]
    if errors:
        raise errors[0]
    return None


def refuse_unreadable(checkpoint: Path, thoroughly: bool) -> None:
    """
    Raises:
        InputError: there is no such checkpoint, or it cannot be used.
    """
    if not checkpoint.exists():
        raise InputError(
            f"no checkpoint {checkpoint}: give a file or a folder of shards, or leave ckpt_path out"
        )
    advice = "remove it to start afresh, or give another as ckpt_path"
    check_checkpoint(checkpoint, advice, thoroughly)


def refuse_fewer_epochs(checkpoint: Path, max_epochs: int | None) -> None:
    """
    Raises:
        InputError: training was to end before the epoch that the checkpoint is in.
    """
    content = read_checkpoint(checkpoint)
    epochs_done = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if max_epochs is not None and 0 <= max_epochs < epochs_done:
        raise InputError(
            f"trainer.max_epochs is {max_epochs}, and {checkpoint} has {epochs_done} epochs behind it"
        )
