"""Queue of rows whose answers are generated together, before the metrics of their sets are updated."""

import time
from dataclasses import replace
from typing import Any

from torchmetrics import MetricCollection

from dipo_pl.callbacks.pace import Pace
from dipo_pl.metrics.observations import Observations

# Rows whose answers are generated together: more than a batch has, since a step of few rows takes as long.
TOGETHER = 128


class GenerationQueue:
    """Queue of an evaluation's rows that wait for generated answers, by the maximum length of these.

    Attributes:
        answers: number of answers that were generated in this evaluation.
        pace: time that the answers of all evaluations so far have taken.
    """

    def __init__(self) -> None:
        self.answers = 0
        self.pace = Pace()
        self._waiting: dict[int, list[tuple[MetricCollection, Observations, list[list[int]]]]] = {}

    def start(self) -> None:
        """Empty the queue for an evaluation."""
        self.answers = 0
        self._waiting = {}

    def add(
        self, length: int, metrics: MetricCollection, seen: Observations, prompts: list[list[int]]
    ) -> bool:
        """Add the rows of a batch; return whether enough rows wait.

        Args:
            length: maximum length of an answer in tokens.
            metrics: of the set of these rows; updated once they have answers.
            seen: observations of the rows.
            prompts: token ids of the prompt of each row.
        """
        waiting = self._waiting.setdefault(length, [])
        waiting.append((metrics, seen, prompts))
        return sum(len(each) for *_, each in waiting) >= TOGETHER

    def generate(self, module: Any, length: int) -> None:
        """Generate answers of at most this length to the rows that wait for them, and update their metrics."""
        waiting = self._waiting.pop(length)
        prompts = [each for *_, some in waiting for each in some]
        known = [each for _, seen, _ in waiting for each in seen.greedy]
        started = time.monotonic()
        # Lightning's hooks run outside the precision that its steps have.
        with module.trainer.precision_plugin.forward_context():
            texts = iter(module.generate(prompts, length, self._count, known))
        self.pace.add(len(prompts), time.monotonic() - started)
        for metrics, seen, prompts in waiting:
            metrics.update(replace(seen, generation=[next(texts) for _ in prompts]))

    def generate_rest(self, module: Any) -> None:
        """Generate answers to all rows that wait."""
        for length in list(self._waiting):
            self.generate(module, length)

    def _count(self, answers: int) -> None:
        self.answers += answers
