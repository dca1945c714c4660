"""Callback that counts where a batch waits for its device, by the file that asks for a value; printed at the end."""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from lightning import Callback

from dipo_pl.private_names import TorchDispatchMode

# Operators that need contents on the host: numbers, truth values and lists, and results whose size depends on contents.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique")


class Waits(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        # A mask as an index is looked through for what it keeps.
        indices = args[1] if name.startswith("index") and isinstance(args[1], list | tuple) else ()
        masks = any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in indices)
        if name in WAITING or masks:
            self.counts[_caller()] += 1
        return function(*args, **(kwargs or {}))


def _caller() -> str:
    """The innermost file that is neither this one nor torch's."""
    files = [Path(each.filename) for each in traceback.extract_stack()]
    return next(
        each.name for each in reversed(files) if "torch" not in each.parts and each.name != "host_syncs.py"
    )


class CountWaits(Callback):
    """Counts over batch 1 of the first epoch, with all that the trainer does until the next one."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 0 and batch_idx == 1:
            self.waits = Waits()
            self.waits.__enter__()
        elif trainer.current_epoch == 0 and batch_idx == 2:
            self.waits.__exit__(None, None, None)
            print(f"waits {dict(self.waits.counts)}")
