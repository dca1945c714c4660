"""Base of callbacks that measure a run's model beside its evaluation sets."""

from abc import ABC, abstractmethod

from lightning import Callback, LightningModule, Trainer


class Measurement(Callback, ABC):
    """Base of callbacks that add metrics to those evaluations in which answers are generated.

    If none is (forget_quality.generate_every 0), they are added to every evaluation.
    """

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Return metrics of the model by name; called on every rank, and returns the same on all of them."""
