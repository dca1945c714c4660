"""A figure of one evaluation set, from the values of its rows."""

from typing import Any

from torch import Tensor

from dipo_pl.metrics.derived import Derived
from dipo_pl.metrics.per_row import PerRow


class RowMetric(Derived):
    """The mean score of the rows of one set; a row that arrives twice counts once, as in `PerRow`.

    A subclass updates `collected` and may say how a score comes from the values it keeps, and the figure from the
    scores. Both are made in `compute`, where every process sees the same and raises the same.

    Args:
        kwargs: those of `torchmetrics.Metric`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.collected = PerRow(**kwargs)

    def score(self, values: Tensor) -> Tensor:
        """From [N, K] values to [N] scores."""
        return values[:, 0].cpu()

    def per_row(self) -> tuple[Tensor, Tensor]:
        """What the figure is made of; to be called on every process, as `compute` is.

        Returns: rows [N] int64, ascending, each once; scores [N] float64. Both on the CPU.
        Raises: ValueError: there are no rows, or a value has no score.
        """
        rows, values = self.collected.compute()
        if len(rows) == 0:
            raise ValueError(
                f"{type(self).__name__} has no rows; update it with those of its set before compute"
            )
        return rows.cpu(), self.score(values)

    def compute(self) -> Any:
        """The mean of the scores of all processes' rows: scalar float64 on the CPU.

        Raises: ValueError: as `per_row`.
        """
        return self.per_row()[1].mean()
