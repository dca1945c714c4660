"""Names under which loggers show what is measured, by group: forget/, retain/, utility/, privacy/ and train/."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
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
    """Lightning's logger for TensorBoard, which shows names without a group (epoch, selection) in train/.

    A run that goes on has another file of events, whose name begins with the second it was made in.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        now = time.time()
        if any(Path(self.log_dir).glob(f"events.out.tfevents.{int(now)}.*")):
            # TensorBoard reads a folder's files by name, and drops what it has read before a lower step. Within one second
            # the names of two files are no longer in the order in which they were made (.10 is before .9).
            time.sleep(1 - now % 1)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values at a step."""
        grouped = {name if "/" in name else f"train/{name}": value for name, value in metrics.items()}
        super().log_metrics(grouped, step)
