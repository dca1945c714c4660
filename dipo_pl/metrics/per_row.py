"""Per-example results of an evaluation set, gathered from batches and processes."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class PerRow(Metric):
    """Collects K values for every row of one evaluation set, whatever the batches and processes.

    A row that arrives more than once, as a distributed sampler's padding does, counts once: the first
    arrival on the lowest rank stays. Rows of two sets in one `PerRow` would thus hide each other; give each
    set its own. NaN and inf pass through, since raising on one process leaves the others waiting: what reads
    the result after `compute` is the place to reject them.

    Args:
        kwargs: those of `torchmetrics.Metric`.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    rows: list[Tensor]
    values: list[Tensor]
    columns: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("rows", [], dist_reduce_fx="cat")
        # Flat, since a process without rows does not know K, and a gather wants equally many axes.
        self.add_state("values", [], dist_reduce_fx="cat")
        self.add_state("columns", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    def update(self, rows: Tensor, values: Tensor) -> None:
        """Add a batch.

        Args:
            rows: [R] int64, the positions of the examples in their evaluation set; R may be 0.
            values: [R, K] float, K >= 1 and the same in every batch; kept as float64, on MPS as float32.
        Raises: ValueError: shapes disagree, rows are not whole numbers, or K is 0 or changes.
        """
        if rows.ndim != 1 or rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool:
            raise ValueError(
                f"rows must be whole numbers of shape [R], got {rows.dtype} of shape {list(rows.shape)}; "
                "pass the positions of the examples in their set"
            )
        if values.ndim != 2 or len(values) != len(rows) or values.shape[1] == 0:
            raise ValueError(
                f"values must have shape [{len(rows)}, K], K >= 1, for {len(rows)} rows, "
                f"got {list(values.shape)}; pass one line of values for each row"
            )
        if self.columns not in (0, values.shape[1]):
            raise ValueError(
                f"values must have {int(self.columns)} columns, as in the batches before, "
                f"got {values.shape[1]}; give each kind of values its own PerRow"
            )
        # Not in place: Lightning resets metrics in inference mode, where tensors become read-only outside it.
        self.columns = torch.full_like(self.columns, values.shape[1])
        self.rows.append(rows.to(self.device, torch.int64, copy=True))
        self.values.append(values.detach().to(self.device, self._value_dtype, copy=True).flatten())

    def compute(self) -> tuple[Tensor, Tensor]:
        """What all processes collected, in the order of the set.

        Returns: rows [N] int64, ascending, each once; values [N, K]. N = K = 0 before any update.
        Raises: ValueError: the processes disagree about K.
        """
        rows, flat = dim_zero_cat(self.rows), dim_zero_cat(self.values)
        columns = int(self.columns)
        # `columns` is the largest K of all processes, so any smaller one leaves fewer numbers than this.
        if len(flat) != len(rows) * columns:
            raise ValueError(
                f"values must have the same number of columns in every process, got {len(flat)} numbers for "
                f"{len(rows)} rows and at most {columns} columns; give each kind of values its own PerRow"
            )
        rows, order = torch.sort(rows, stable=True)
        first = torch.ones_like(rows, dtype=torch.bool)
        first[1:] = rows[1:] != rows[:-1]
        return rows[first], flat.reshape(len(rows), columns)[order[first]]

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """`Metric.sync`, which a process without rows can join too."""
        # torchmetrics gathers an empty list as float32, which the int64 and float64 of the others do not fit.
        if isinstance(self.rows, list) and not self.rows:
            self.rows = [torch.empty(0, dtype=torch.int64, device=self.device)]
            self.values = [torch.empty(0, dtype=self._value_dtype, device=self.device)]
        super().sync(*args, **kwargs)

    @property
    def _value_dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "mps" else torch.float64

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def keep_axes(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            # torchmetrics squeezes every tensor of one element to a scalar.
            rows, values = wrapped(*args, **kwargs)
            return rows.reshape(-1), values.reshape(1, 1) if values.ndim == 0 else values

        return keep_axes
