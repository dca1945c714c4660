"""Gradient accumulation that follows from a global batch size."""

from dipo_pl.errors import InputError


def accumulated_batches(global_batch_size: int, batch_size: int, ranks: int, given: int = 1) -> int:
    """Return how many batches of each rank make an optimizer step of `global_batch_size` rows.

    Args:
        global_batch_size: rows of an optimizer step over all ranks.
        batch_size: rows of one batch on one rank.
        ranks: world size.
        given: trainer.accumulate_grad_batches as it was set; 1 where it was not.

    Raises:
        InputError: the ranks cannot take exactly this many rows, or another accumulation is asked for.
    """
    accumulation, rest = divmod(global_batch_size, batch_size * ranks)
    if rest or not accumulation:
        fitting = [each for each in range(1, batch_size + 1) if global_batch_size % (each * ranks) == 0]
        advice = f"a data.batch_size of {fitting[-1]}" if fitting else f"a multiple of {ranks}"
        raise InputError(
            f"data.global_batch_size is {global_batch_size}, and {ranks} device{'s' * (ranks > 1)} with "
            f"data.batch_size {batch_size} take {batch_size * ranks} rows at once, which does not divide it: "
            f"{advice} does"
        )
    if given not in (1, accumulation):
        raise InputError(
            f"data.global_batch_size {global_batch_size} and trainer.accumulate_grad_batches {given} both say how "
            "many batches are accumulated: leave the second at 1"
        )
    return accumulation
