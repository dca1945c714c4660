"""How well a membership score sets trained texts apart from others, as a torchmetric."""

from typing import Any

import torch
from torch import Tensor

from dipo_pl.metrics.derived import Derived
from dipo_pl.metrics.functional import auroc
from dipo_pl.metrics.per_row import PerRow


class MembershipAUC(Derived):
    """`auroc` of a score between a forget set and a holdout set; 0.5 is best.

    The two number their rows each from 0. What was collected of them are the `PerRow`s `members` and `nonmembers`.

    Args:
        kwargs: those of `torchmetrics.Metric`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.members, self.nonmembers = PerRow(**kwargs), PerRow(**kwargs)

    def update(self, rows: Tensor, scores: Tensor, members: bool) -> None:
        """Add a batch of one of the two sets.

        Args:
            rows: [R] int64, the positions of the examples in their set.
            scores: [R], higher for those less likely a member.
            members: whether these are of the forget set.
        Raises: ValueError: shapes disagree.
        """
        (self.members if members else self.nonmembers).update(rows, scores.unsqueeze(-1))

    def compute(self) -> Tensor:
        """The area over all processes' rows: scalar float64 on the CPU.

        Raises: ValueError: a set has no rows, or a score is not finite.
        """
        # Flat, since without rows there is no column to take.
        scores = [part.compute()[1].flatten() for part in (self.members, self.nonmembers)]
        return torch.tensor(auroc(*scores), dtype=torch.float64)
