"""Base of all attacks, and what an attack has found."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from dipo_pl.attacks.intervals import Intervals
from dipo_pl.attacks.subject import CALLED, MODELS, UNLEARNED, Subject
from dipo_pl.errors import NOT_FINITE, InputError, check_number


@dataclass(frozen=True)
class Outcome:
    """Result of an attack: numbers alone, no texts.

    Attributes:
        headline: what `values` are, in words.
        values: for each attacked model one number by which the models are compared; the higher, the more it knows.
        metrics: what enters metrics.jsonl, by key.
        floor: the value of a model that knows nothing, which stands in where there is no retain-only model.
        intervals: of 95 % confidence over rows; None where they are not known, so that values alone are compared.
        rows: values of single rows, each with its number `row`.
        series: by name the values of a curve, one of them its steps, layers or settings.
    """

    headline: str
    values: dict[str, float]
    metrics: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)
    series: dict[str, list[Any]] = field(default_factory=dict)
    intervals: Intervals | None = None
    floor: float = 0.0

    def check(self, attack: str) -> None:
        """Refuse numbers that nothing can be judged by.

        Args:
            attack: its name.

        Raises:
            InputError: a value or a bound of an interval is not finite.
        """
        found = {CALLED.get(name, name): [value] for name, value in self.values.items()}
        if self.intervals is not None:
            bounds = {name: value for name, value in vars(self.intervals).items() if isinstance(value, list)}
            found |= {f"interval of the {name}": each for name, each in bounds.items()}
        for name, numbers in found.items():
            for each in numbers:
                if not math.isfinite(each):
                    raise InputError(
                        f"{attack}: the {name} is {NOT_FINITE} ({each}): an attack must return finite numbers"
                    )

    def content(self) -> dict[str, Any]:
        """Return the outcome as plain values, which `read` takes."""
        return asdict(self)

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Self:
        """Return an outcome from its plain values."""
        intervals = content.get("intervals")
        return cls(**{**content, "intervals": None if intervals is None else Intervals(**intervals)})


class Attack(ABC):
    """Base of attacks.

    A subclass says in `lacks` what it cannot do without, and attacks all models of a `Subject` in `run`. Its arguments
    are the keys below its name in the config of an audit.

    Args:
        tolerance: largest distance of the unlearned model's headline value to the retain-only model's that counts as none.
    """

    def __init__(self, tolerance: float = 0.05) -> None:
        check_number(f"{type(self).__name__}.tolerance", tolerance, minimum=0)
        self.tolerance = tolerance

    @property
    def name(self) -> str:
        """The attack's name in results, from its class: `LeakAtK` is leak_at_k."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    def lacks(self, subject: Subject) -> str | None:
        """Return what the attack needs and the subject does not have; None if it can be tried."""
        return None

    @abstractmethod
    def run(self, subject: Subject) -> Outcome:
        """Attack the models; on every rank, which all return the same."""


def check_some(name: str, values: Sequence[Any] | None) -> None:
    """Refuse an empty list of settings, with which an attack would try nothing; None passes, for the default.

    Raises:
        InputError: the list is empty.
    """
    if values is not None and not values:
        raise InputError(f"{name} must have at least one value (got []): leave it out for the default")


def keyed(model: str, key: str) -> str:
    """Return the key of a model's value in metrics.jsonl: the unlearned model's own are without a prefix."""
    return key if model == UNLEARNED else f"{model}_{key}"


def numbered(
    by_row: Mapping[str, Sequence[Any]], numbers: Iterable[int] | None = None
) -> list[dict[str, Any]]:
    """Return values of rows as an outcome has them: for each row its number, and the value of each model.

    Args:
        by_row: for each model the values of the rows.
        numbers: of the rows; None counts them from 0.
    """
    rows = list(zip(*by_row.values(), strict=True))
    return [
        {"row": number, **dict(zip(by_row, values, strict=True))}
        for number, values in zip(range(len(rows)) if numbers is None else numbers, rows, strict=True)
    ]


def by_model(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the metrics of all models under their keys.

    Args:
        values: for each model its metrics.
    """
    return {
        keyed(model, key): value
        for model in MODELS
        if model in values
        for key, value in values[model].items()
    }
