"""Logit lens: in which layers can what was forgotten still be read?"""

from typing import Any

import torch

from dipo_pl.attacks.base import Attack, Outcome, by_model
from dipo_pl.attacks.intervals import of_rows
from dipo_pl.attacks.spans import entity_batches, in_row_order, span_of
from dipo_pl.attacks.subject import CALLED, Subject
from dipo_pl.models.upper_layers import check_layers, lens_probabilities


class LogitLens(Attack):
    """Attack that reads the entity in each layer's states, as if no layer followed: cheap, and needs one model at a time.

    `logit_lens` is the mean over layers and rows of the entity's mean token probability; see
    `dipo_pl.models.upper_layers.lens_probabilities`. What is read is the row's `entity`, or the whole answer.

    Args:
        tolerance: see `Attack`; of the largest mean over rows of a layer.
    """

    def run(self, subject: Subject) -> Outcome:
        """Return the probabilities of each model by layer."""
        found = subject.each_model(self.name, lambda name: self._probabilities(subject, name))
        means = {name: torch.tensor(each, dtype=torch.float64).mean(0) for name, each in found.items()}
        series: dict[str, list[Any]] = {"layer": list(range(max(map(len, means.values()))))}
        series |= {name: each.tolist() for name, each in means.items()}
        rows: list[dict[str, Any]] = [
            {"row": row, "span": span}
            | {name: sum(each[row]) / len(each[row]) for name, each in found.items()}
            for row, span in enumerate(span_of(subject))
        ]
        metrics = by_model({name: {self.name: float(each.mean())} for name, each in means.items()})
        values = {name: float(each.max()) for name, each in means.items()}
        layers = {name: int(each.argmax()) for name, each in means.items()}
        intervals = of_rows({name: [row[layers[name]] for row in each] for name, each in found.items()})
        return Outcome("largest mean probability of a layer", values, metrics, rows, series, intervals)

    def _probabilities(self, subject: Subject, name: str) -> list[list[float]]:
        places, batches = entity_batches(subject)
        with subject.model(name) as model:
            check_layers(model)
            found = subject.shared(
                batches,
                lambda batch: lens_probabilities(model, batch.to(subject.device)),
                f"layers of the {CALLED[name]}, batches",
            )
        values: list[list[float]] = in_row_order(places, found).tolist()
        return values
