"""Names under which loggers show what is measured, by group: forget/, retain/, utility/, privacy/ and train/."""

import re
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

# Metrics of several sets, and sets that show what is kept or what can be told.
_GROUPS = {
    "privacy": r"priv_leak|membership_.*|holdout_.*",
    "forget": r"forget_.*|request_\d+_.*|relearned_.*|held_back_.*",
    "retain": r"retain_.*",
}


def logged_name(metric: str) -> str:
    """Return the name of an evaluation's metric in loggers.

    That is its name in metrics.jsonl with its group before it, instead of the set that gives the group its name:
    `forget/probability`, `retain/rouge_l_recall`, `privacy/membership_min_k_auc`, `utility/model_utility`. What belongs to
    none of the other groups is utility.
    """
    group = next((name for name, pattern in _GROUPS.items() if re.fullmatch(pattern, metric)), "utility")
    return f"{group}/{metric.removeprefix(f'{group}_')}"


class RunLogger(TensorBoardLogger):
    """Lightning's logger for TensorBoard, which shows names without a group (epoch, selection) in train/."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values at a step."""
        grouped = {name if "/" in name else f"train/{name}": value for name, value in metrics.items()}
        super().log_metrics(grouped, step)
