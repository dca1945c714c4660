"""The base of all metrics: keeps observations of rows, gathers them over ranks, drops repeated rows, computes values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from dipo_pl.errors import TrainingError
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.metrics.conventions import CONVENTIONS, Convention
from dipo_pl.metrics.observations import Observations
from dipo_pl.metrics.result import EvaluationResult, SetResult
from dipo_pl.rows import Row
from dipo_pl.storage.fingerprints import rows_fingerprint

FORGET, HOLDOUT = "forget", "holdout"

# Inputs that are not floating-point numbers. Texts travel as UTF-8, since ranks gather tensors only.
_DTYPES = {"targets": torch.int64, "predictions": torch.int64, "generation": torch.uint8}


@dataclass(frozen=True)
class MeasuredSet:
    """The evaluation set that a metric measures, and how.

    Attributes:
        evaluation_set: its rows.
        convention: the convention that values follow.
        generates: answers to its rows are generated.
        retain: the retain-only model's result on the same rows; None if there is none.
    """

    evaluation_set: EvaluationSet
    convention: Convention = CONVENTIONS["dipo_pl"]
    generates: bool = True
    retain: SetResult | None = None

    @property
    def name(self) -> str:
        """The name of the set."""
        return self.evaluation_set.name

    @property
    def rows(self) -> Sequence[Row]:
        """The rows of the set."""
        return self.evaluation_set.rows

    @property
    def references(self) -> list[str]:
        """The true answer of each row."""
        return [row.answer for row in self.rows]

    @property
    def scored_answers(self) -> Sequence[str]:
        """The text of each row that its loss is of: the true answer, or what data.max_length leaves of it."""
        cut = self.evaluation_set.scored_answers
        return self.references if cut is None else cut

    @property
    def has_wrong_answers(self) -> bool:
        """True if rows have wrong answers to compare the correct one with."""
        return bool(self.rows[0].wrong_answers)


class EvaluationMetric(Metric):
    """Base of all metrics of an evaluation, a torchmetrics `Metric` with list states.

    A subclass names in `inputs` the fields of `Observations` that it needs, and implements `per_row` with a pure
    function. `update` keeps these fields of each batch. `compute` gathers them over ranks, drops rows that arrived
    more than once (samplers repeat rows so that ranks have equally many batches), and calls `per_row` for the whole
    set in its order. So values do not depend on batches or ranks, and an input that is refused is refused on every
    rank: an error on one rank alone would leave the others waiting for it.

    A metric of several sets has no `inputs` and implements `across`.

    Args:
        further_inputs: inputs besides those of the class, if its arguments decide which it needs.

    Attributes:
        inputs: the fields of `Observations` that it needs.
        measured: the set that this copy of the metric measures; see `for_set`.
        row_values: after `compute`, the values of each row by name, in the order of the set.
    """

    inputs: tuple[str, ...] = ()
    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    measured: MeasuredSet
    rows: list[Tensor]

    def __init__(self, *further_inputs: str) -> None:
        super().__init__()
        self.inputs = (*self.inputs, *further_inputs)
        self.row_values: dict[str, list[Any]] = {}
        self.add_state("rows", [], dist_reduce_fx="cat")
        for name in self.inputs:
            # Rows have different numbers of values: these are stored one after another.
            self.add_state(name, [], dist_reduce_fx="cat")
            self.add_state(f"{name}_lengths", [], dist_reduce_fx="cat")

    @property
    def settings(self) -> dict[str, float]:
        """Arguments that change values, by name; results with different settings are not compared."""
        return {}

    def applies(self, measured: MeasuredSet) -> bool:
        """Return True if this metric has values of the rows of a set."""
        return bool(self.inputs) and (measured.generates or "generation" not in self.inputs)

    def per_row(self, seen: Observations) -> dict[str, Tensor]:
        """Return values of each row, [N] by name.

        Args:
            seen: the `inputs` of all N rows, in the order of the set.
        """
        raise NotImplementedError

    def of_set(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the values of the set by name, scalars, from those of its rows; by default their means."""
        return {name: each.mean() for name, each in values.items()}

    def across(self, sets: Mapping[str, SetResult], retain: EvaluationResult | None) -> dict[str, float]:
        """Return values that are made from the results of several sets.

        Args:
            sets: the result of each evaluation set, by name.
            retain: the retain-only model's result; None if there is none.
        """
        return {}

    def for_set(self, measured: MeasuredSet) -> Self:
        """Return a copy that measures one evaluation set."""
        copy = cast(Self, self.clone())
        copy.measured = measured
        return copy

    def update(self, seen: Observations) -> None:
        """Keep the inputs of a batch; raise ValueError if an input does not have one entry for each row."""
        self.rows.append(seen.rows.to(self.device, torch.int64, copy=True))
        for name in self.inputs:
            cells = [self._cell(name, each) for each in getattr(seen, name)]
            if len(cells) != len(seen.rows):
                raise ValueError(
                    f"{name} must have one entry for each of {len(seen.rows)} rows (got {len(cells)})"
                )
            getattr(self, name).append(torch.cat([self._cell(name, ()), *cells]))
            lengths = torch.tensor([len(each) for each in cells], dtype=torch.int64, device=self.device)
            getattr(self, f"{name}_lengths").append(lengths)

    def compute(self) -> dict[str, Tensor]:
        """Return the values of the set by name, and put those of its rows into `row_values`.

        Returns:
            Scalars; nothing if rows of the set are missing.

        Raises:
            TrainingError: `per_row` does not give one finite number for each row.
            ValueError: raised by the pure function, on every rank.
        """
        seen, count = self.gathered(), len(self.measured.rows)
        if len(seen.rows) < count:
            return {}
        values = self.per_row(seen)
        for name, each in values.items():
            if each.shape != (count,) or not each.isfinite().all():
                raise TrainingError(
                    f"{type(self).__name__} must give a finite number {name} for each of the {count} rows of "
                    f"{self.measured.name} (got {each.tolist()[:5]} of shape {list(each.shape)})"
                )
        self.row_values = {name: each.tolist() for name, each in values.items()}
        return self.of_set(values)

    def gathered(self) -> Observations:
        """Return the inputs of all rows, on the CPU, each row once and in the order of the set.

        Within `compute`, those of all ranks; of a row that arrived more than once, the first on the lowest rank.
        """
        rows, order = torch.sort(self._joined("rows"), stable=True)
        first = torch.ones_like(rows, dtype=torch.bool)
        first[1:] = rows[1:] != rows[:-1]
        fields: dict[str, Any] = {}
        for name in self.inputs:
            cells = self._joined(name).split(self._joined(f"{name}_lengths").tolist())
            chosen = [cells[place] for place in order[first].tolist()]
            if name == "generation":
                fields[name] = [bytes(each.tolist()).decode("utf-8", "surrogatepass") for each in chosen]
            elif name in ("nll", "gradient_norm"):
                fields[name] = torch.stack(chosen) if chosen else torch.empty(0, 1)
            else:
                fields[name] = chosen
        return Observations(rows[first], **fields)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all ranks, also of ranks without rows."""
        if not self.rows:
            # torchmetrics would gather empty lists as float32, which other ranks' states do not match.
            EvaluationMetric.update(self, Observations(torch.empty(0, dtype=torch.int64)))
        super().sync(*args, **kwargs)

    def _cell(self, name: str, value: Any) -> Tensor:
        """Return the values of one row as a vector on the metric's device."""
        # MPS has no float64.
        number = torch.float32 if self.device.type == "mps" else torch.float64
        if name == "generation":
            value = list(str(value).encode("utf-8", "surrogatepass")) if value else ()
        tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value)
        return tensor.to(self.device, _DTYPES.get(name, number)).reshape(-1)

    def _joined(self, name: str) -> Tensor:
        """Return a state as one tensor on the CPU; it is a list until ranks are gathered."""
        state: Tensor | list[Tensor] = getattr(self, name)
        if isinstance(state, list):
            state = torch.cat(state) if state else torch.empty(0, dtype=torch.int64)
        return state.cpu()


class AnswerRecord(EvaluationMetric):
    """Keeps NLL and generation of each row as they are, for the file of an evaluation; computes nothing."""

    inputs = ("nll",)

    def __init__(self, measured: MeasuredSet) -> None:
        super().__init__(*(["generation"] if measured.generates else []))

    def compute(self) -> dict[str, Tensor]:
        """Put NLL and generation of each row into `row_values`."""
        seen = self.gathered()
        if len(seen.rows) == len(self.measured.rows):
            self.row_values = {name: [*map(_plain, getattr(seen, name))] for name in self.inputs}
        return {}


def collection(metrics: Sequence[EvaluationMetric], measured: MeasuredSet) -> MetricCollection:
    """Return copies of the metrics that apply to an evaluation set, in one collection of torchmetrics."""
    applying = [AnswerRecord(measured), *(each for each in metrics if each.applies(measured))]
    return MetricCollection([each.for_set(measured) for each in applying], compute_groups=False)


def members(metrics: MetricCollection) -> list[EvaluationMetric]:
    """Return the metrics of a collection."""
    return cast(list[EvaluationMetric], list(metrics.values()))


def set_result(metrics: MetricCollection) -> SetResult | None:
    """Return what a collection measured of its set, on every rank; None if rows are missing.

    Raises:
        TrainingError, ValueError: raised by a metric's `compute`, on every rank.
    """
    values = {name: float(value) for name, value in metrics.compute().items()}
    columns: dict[str, list[Any]] = {}
    for metric in members(metrics):
        columns |= metric.row_values
    measured = members(metrics)[0].measured
    known = measured.rows
    if not columns:
        return None
    rows = [
        {"row": place, "question": row.question, "answers": row.measured_answers}
        | {name: column[place] for name, column in columns.items()}
        for place, row in enumerate(known)
    ]
    return SetResult(values, rows, rows_fingerprint(known), measured.evaluation_set.tokens)


def all_values(
    sets: Mapping[str, SetResult],
    metrics: Sequence[EvaluationMetric],
    retain: EvaluationResult | None = None,
) -> dict[str, float]:
    """Return the values of each set, as `SET_NAME`, and those that metrics make from several sets.

    Args:
        sets: the result of each evaluation set, by name.
        metrics: the metrics of the evaluation.
        retain: the retain-only model's result; None if there is none.
    """
    values = {f"{name}_{key}": each for name, found in sets.items() for key, each in found.metrics.items()}
    for metric in metrics:
        values |= metric.across(sets, retain)
    return values


def _plain(value: Tensor | str) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
