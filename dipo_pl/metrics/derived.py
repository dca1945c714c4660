"""A figure that is derived from metrics which hold all that was collected."""

from typing import Any

from torchmetrics import Metric
from torchmetrics.wrappers.abstract import WrapperMetric


class Derived(WrapperMetric):
    """A metric whose state is that of the metrics it has as attributes; those gather it from all processes.

    `metric(...)` is `update` and returns nothing: a test or a harmonic mean of one batch would say nothing.
    """

    full_state_update = False
    is_differentiable = False

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """`update`."""
        self.update(*args, **kwargs)

    def reset(self) -> None:
        """Forget what the parts collected."""
        super().reset()
        for part in self.modules():
            if part is not self and isinstance(part, Metric):
                part.reset()
