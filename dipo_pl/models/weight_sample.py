"""What training does to weights in their data type, measured on evenly spaced samples of them."""

from collections.abc import Iterable, Mapping

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from dipo_pl.distributed import full_tensor
from dipo_pl.errors import InputError

# Weights of all tensors together: shares are known to a tenth of a percent.
SAMPLE = 2**20
# Below this share of weights that a step can change, training in half precision loses most of it.
MOVABLE = 0.99
# Share of the changed weights that must stay changed where an export is rounded unasked.
KEPT = 0.99


def sampled(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return evenly spaced values of each tensor on the CPU, about `SAMPLE` in all. A collective if they are sharded."""
    stride = max(1, sum(each.numel() for each in weights.values()) // SAMPLE)
    return {
        name: full_tensor(each).detach().flatten()[::stride].to("cpu", copy=True)
        for name, each in weights.items()
    }


def changed_share(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Return the share of the weights of `before` that differ in `after`, compared in the data type of `after`."""
    changed = sum(int((after[name] != each.to(after[name].dtype)).sum()) for name, each in before.items())
    return changed / max(1, sum(map(len, before.values())))


def kept_share(before: Mapping[str, Tensor], after: Mapping[str, Tensor], dtype: torch.dtype) -> float:
    """Return the share of the changed weights that are still changed when both sides are rounded to a data type."""
    changed = changed_share(before, after)
    rounded = changed_share(before, {name: each.to(dtype) for name, each in after.items()})
    return rounded / changed if changed else 1.0


def export_dtype(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    stored: torch.dtype | None,
    asked: torch.dtype | None = None,
) -> tuple[torch.dtype, str]:
    """Return the data type of an exported model, and what it means for the change of the weights, in words.

    Args:
        before: weights before training.
        after: the same ones after training, in the data type in which they were trained.
        stored: data type of the checkpoint that was trained, if there was one.
        asked: data type that was asked for; else that of the checkpoint if rounding to it loses next to no change.
    """
    trained = next((each.dtype for each in after.values()), torch.float32)
    stored = stored or trained
    kept = kept_share(before, after, stored)
    dtype = asked or (stored if kept >= KEPT else trained)
    if dtype.itemsize < trained.itemsize:
        share = kept_share(before, after, dtype)
        return dtype, f"in {_name(dtype)}, in which {share:.1%} of the changed weights are still changed"
    if stored.itemsize < trained.itemsize:
        return dtype, (
            f"in {_name(dtype)}, as trained and measured: in {_name(stored)}, as the checkpoint was, {kept:.1%} of the "
            f"changed weights would still be changed (--export.dtype {_name(stored)})"
        )
    return dtype, f"in {_name(dtype)}"


def movable_share(weights: Iterable[Tensor], step: float) -> float:
    """Return the share of weights that adding `step` changes, after rounding to their own data type."""
    moved = total = 0
    for each in weights:
        moved += int(((each.float() + step).to(each.dtype) != each).sum())
        total += each.numel()
    return moved / max(1, total)


def check_trained_dtype(trained: Mapping[str, Tensor], rate: float) -> None:
    """Warn of trained weights in bfloat16 that most steps leave as they are.

    An optimizer that normalizes gradients, as AdamW does, changes a weight by about the learning rate.

    Args:
        trained: the trained weights by name.
        rate: largest learning rate.

    Raises:
        InputError: weights are float16.
    """
    dtypes = {each.dtype for each in trained.values()}
    instead = (
        "set model.policy.dtype to float32 and trainer.precision to 32-true or a mixed one (--config bf16.yaml), or "
        "train adapters (--config lora.yaml)"
    )
    if torch.float16 in dtypes:
        raise InputError(
            f"the trained weights are float16, in which small gradients and AdamW's epsilon are 0: {instead}"
        )
    if torch.bfloat16 not in dtypes:
        return
    half = {name: each for name, each in trained.items() if each.dtype == torch.bfloat16}
    share = movable_share(sampled(half).values(), rate)
    if share < MOVABLE:
        rank_zero_warn(
            f"the trained weights are bfloat16: a step of the learning rate {rate:g} changes {share:.1%} of them, and the "
            f"others are rounded back to what they were: {instead}"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
