"""Messages from before a run begins, held back so that an input error is the only line."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from lightning import Callback, LightningModule, Trainer

from dipo_pl.cli.console import RANK_ZERO_LOGGERS


class HeldMessages(Callback):
    """Callback that lets go, once a run begins, of what was logged while it was prepared.

    An error drops it. Warnings that are not logged are never held back.
    """

    def __init__(self) -> None:
        self._held: list[logging.LogRecord] = []
        self._holders: list[logging.Filterer] = []

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Hold messages back until the run begins or this ends; an exception drops them."""
        self._held.clear()
        # All of transformers' loggers share handlers; these exist since it was imported.
        self._holders = [
            *map(logging.getLogger, RANK_ZERO_LOGGERS),
            *logging.getLogger("transformers").handlers,
        ]
        for each in self._holders:
            each.addFilter(self._keep)
        try:
            yield
        except BaseException:
            self._held.clear()
            raise
        finally:
            self._release()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go before the first evaluation."""
        self._release()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go before the first step."""
        self._release()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go before an evaluation without training."""
        self._release()

    def _keep(self, record: logging.LogRecord) -> bool:
        is_error = record.levelno >= logging.ERROR
        if not is_error:
            self._held.append(record)
        return is_error

    def _release(self) -> None:
        for each in self._holders:
            each.removeFilter(self._keep)
        held, self._held = self._held, []
        for record in held:
            logging.getLogger(record.name).handle(record)
