"""Base of callbacks that decide whether an evaluation needs generated answers."""

from abc import ABC, abstractmethod

from lightning import Callback, Trainer

from dipo_pl.evaluation.verdict_rules import Metrics


class NeedsAnswers(Callback, ABC):
    """Base of callbacks that are asked, once all else is measured, in evaluations in which none would be generated."""

    @property
    @abstractmethod
    def decides(self) -> bool:
        """True if it is worth while to generate answers seldom, since it says where they count."""

    @abstractmethod
    def needs_answers(self, trainer: Trainer, metrics: Metrics) -> bool:
        """Return whether answers are to be generated; asked on every rank, and returns the same on all of them.

        Args:
            trainer: the trainer.
            metrics: what was measured without answers.
        """
