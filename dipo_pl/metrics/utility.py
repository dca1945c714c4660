"""Model Utility, as a torchmetric."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from dipo_pl.metrics.derived import Derived
from dipo_pl.metrics.functional import model_utility


class ModelUtility(Derived):
    """`model_utility` of several figures of several sets.

    Args:
        parts: the metrics whose figures it is made of, by name: TOFU's are `AnswerProbability` or
            `OptionProbability`, `RougeLRecall` and `TruthRatio(truth_ratio_margin)` of retain, real authors and
            world facts. They may be updated here or themselves.
    Raises: ValueError: there are no parts.
    """

    higher_is_better = True

    def __init__(self, parts: Mapping[str, Metric]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("ModelUtility needs at least one part, got none; TOFU takes nine")
        self.parts = nn.ModuleDict(parts)

    def update(self, part: str, *args: Any, **kwargs: Any) -> None:
        """Add a batch to a part.

        Args:
            part: its name.
            args, kwargs: those of its own `update`.
        Raises: ValueError: there is no such part, or as it says.
        """
        if part not in self.parts:
            raise ValueError(f"ModelUtility has no part {part!r}; its parts are {', '.join(self.parts)}")
        chosen: Any = self.parts[part]
        chosen.update(*args, **kwargs)

    def compute(self) -> Tensor:
        """The harmonic mean of the parts' figures: scalar float64 on the CPU.

        Raises: ValueError: a part has no rows, or a figure is negative or not finite.
        """
        parts: Any = self.parts
        figures = {name: part.compute() for name, part in parts.items()}
        return torch.tensor(model_utility(figures), dtype=torch.float64)
