"""Seed of each training batch, so that a resumed run draws the same random numbers."""

import hashlib
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from dipo_pl.data_modules.forget_retain import ForgetRetain


class BatchSeed(Callback):
    """Callback that seeds torch before each training batch from (seed, epoch, batch, rank); dropout draws from it."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the generators of all devices."""
        place = f"{ForgetRetain.of(trainer).seed}/{trainer.current_epoch}/{batch_idx}/{trainer.global_rank}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "little"))
