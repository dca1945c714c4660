"""The result of an evaluation: the values of every row, and the metrics made from them."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dipo_pl.errors import InputError
from dipo_pl.storage.run_folder import RunFolder


@dataclass(frozen=True)
class SetResult:
    """The result on one evaluation set.

    Attributes:
        metrics: values of the set by name (`probability`, `rouge_l_recall`, `truth_ratio`, ...).
        rows: for each row, in the order of the set: `row` (its position), `question`, `answers` (the texts), `nll`
            (nats per token of each answer: the original and, where wrong answers are known, the correct one of the
            truth ratio and then the wrong ones), `generation`, and the row's own values (`log_truth_ratio`, `min_k`,
            ...). Imported results have no texts.
        fingerprint: of the rows' texts; None if they are not known.
        tokens: fingerprint of the token ids that were measured; None if they are not known.
    """

    metrics: dict[str, float]
    rows: list[dict[str, Any]]
    fingerprint: str | None = None
    tokens: str | None = None

    def values(self, name: str) -> list[float] | None:
        """Return one value of every row; None if there are no rows or one lacks it."""
        found = [row.get(name) for row in self.rows]
        return None if not found or None in found else [float(each) for each in found if each is not None]


@dataclass(frozen=True)
class EvaluationResult:
    """The result on all sets.

    Attributes:
        convention: name of the convention that all values follow.
        metrics: every value: those of the sets as `SET_METRIC`, and those of several sets (`forget_quality`,
            `model_utility`, `membership_min_k_auc`, `priv_leak`, ...).
        sets: by name; `forget` is to be forgotten, `retain` to be kept, `holdout` was seen by no model.
        epoch: epochs of training behind the weights; None if not known.
        step: optimizer steps behind the weights; None if not known.
        utility_sets: the sets that Model Utility averages over.
        settings: what else changes values (`prompt`, `max_new_tokens`, `membership_k`), as far as it is known.
    """

    convention: str
    metrics: dict[str, float]
    sets: dict[str, SetResult]
    epoch: float | None = None
    step: int | None = None
    utility_sets: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Return the result as JSON, which `read` reads."""
        return json.dumps(asdict(self), indent=1)

    def save(self, run: RunFolder, last_step: int | None = None) -> None:
        """Write the result to a file of the run, and its metrics as a line of the run's metrics.jsonl.

        Args:
            run: the run's folder.
            last_step: see `RunFolder.add_evaluation`.
        """
        step = self.step or 0
        made = {"utility_sets": self.utility_sets, "convention": self.convention}
        run.add_evaluation(
            step, {"epoch": self.epoch, "step": step, **self.metrics, **made}, self.text(), last_step
        )

    def other_settings(self, settings: Mapping[str, Any]) -> str | None:
        """Return the first setting with different values there and here; None if all that both know agree."""
        for name in self.settings.keys() & settings.keys():
            if self.settings[name] != settings[name]:
                return f"{name} {self.settings[name]} there and {settings[name]} here"
        return None

    @classmethod
    def read(cls, path: Path) -> "EvaluationResult":
        """Return the result in a file; raise InputError if there is no such file, or it holds something else."""
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            sets = {name: SetResult(**each) for name, each in given.pop("sets").items()}
            _check_numbers(given["metrics"], "metrics")
            for name, each in sets.items():
                _check_numbers(each.metrics, f"metrics of {name}")
                for number, row in enumerate(each.rows):
                    _check_numbers(row, f"row {number} of {name}")
            return cls(sets=sets, **given)
        except FileNotFoundError:
            raise InputError(f"{path} does not exist: give an evaluation file or a run folder") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is not an evaluation ({error!r})") from None


def _check_numbers(values: Mapping[str, Any], where: str) -> None:
    """Raise ValueError unless everything but texts is a finite number or a list of some."""
    for name, value in values.items():
        if name in ("question", "answers", "generation"):
            continue
        numbers = value if isinstance(value, list) else [value]
        if not numbers:
            raise ValueError(f"{name} in {where} is an empty list")
        for each in numbers:
            if type(each) not in (int, float) or not math.isfinite(each):
                raise ValueError(f"{name} in {where} is {number_or_type(each)}, no finite number")


def number_or_type(value: Any) -> str:
    """Return a number as it is, and of anything else its type: it may be a text that was to be forgotten."""
    return repr(value) if isinstance(value, int | float | None) else type(value).__name__
