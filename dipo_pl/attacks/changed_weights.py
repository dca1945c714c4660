"""Base of attacks that change a model's weights a little: what was only hidden may come back."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from dipo_pl.attacks.base import Attack, Outcome, by_model, numbered
from dipo_pl.attacks.intervals import of_rows
from dipo_pl.attacks.measuring import measure
from dipo_pl.attacks.subject import CALLED, Subject
from dipo_pl.metrics import Probability, TruthRatio
from dipo_pl.models.eval_mode import eval_mode


class ChangedWeights(Attack):
    """Base of attacks that measure the forget set on a model whose weights were changed, in several ways.

    A metric is NAME_CHANGE_probability, and of rows with wrong answers NAME_CHANGE_truth_ratio.
    """

    @property
    @abstractmethod
    def changes(self) -> Sequence[str]:
        """Names of the changes."""

    @abstractmethod
    def change(self, model: PreTrainedModel, change: str) -> None:
        """Change the model in place."""

    def run(self, subject: Subject) -> Outcome:
        """Return the metrics of each model after each change."""
        found = {
            change: subject.each_model(f"{self.name}-{change}", partial(self._measured, subject, change))
            for change in self.changes
        }
        metrics = {
            name: {
                f"{self.name}_{change}_{key}": value
                for change in self.changes
                for key, value in found[change][name]["metrics"].items()
            }
            for name in subject.names
        }
        series: dict[str, list[Any]] = {"change": list(self.changes)}
        series |= {
            name: [found[change][name]["metrics"]["probability"] for change in self.changes]
            for name in subject.names
        }
        values = {name: max(series[name]) for name in subject.names}
        largest = {
            name: found[self.changes[series[name].index(values[name])]][name] for name in subject.names
        }
        by_row = {name: each["rows"] for name, each in largest.items()}
        headline = "largest mean probability of the true answer"
        return Outcome(headline, values, by_model(metrics), numbered(by_row), series, of_rows(by_row))

    def _measured(self, subject: Subject, change: str, name: str) -> dict[str, Any]:
        model = subject.fresh(name)
        self.change(model, change)
        with eval_mode(model), torch.no_grad():
            what = f"forget rows of the {CALLED[name]} after {change}, batches"
            metrics = [Probability(), TruthRatio()]
            remedy = f"leave {change} out"
            found = measure(subject, model, subject.forget, metrics, what=what, remedy=remedy)
            return {"metrics": found.metrics, "rows": [row["probability"] for row in found.rows]}
