"""Callback that keeps the checkpoint of the best evaluation."""

from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, but keeps no checkpoint of an evaluation without the monitored metric or a score."""

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        # Lightning would fail, though answers may be generated only at some evaluations.
        if self.monitor is None or self.monitor in monitor_candidates:
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def file_exists(self, filepath: Any, trainer: Trainer) -> bool:
        """Return False: a file of the same step is from an interrupted run, and is replaced."""
        return False

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether a checkpoint with this value is to be kept."""
        scored = current is None or not torch.isneginf(current)
        return bool(scored and super().check_monitor_top_k(trainer, current))
