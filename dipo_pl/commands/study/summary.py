"""Summary of a study's records: values of each row and metric by seed, with intervals."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dipo_pl.commands.study.measure import relearning_area
from dipo_pl.commands.study.plan import Kind
from dipo_pl.commands.study.results import FAILED, FINISHED, Record, Results
from dipo_pl.report.columns import Better, Column, column_of, columns_of
from dipo_pl.report.intervals import Interval, bootstrap_mean

TARGET, RETAIN_ONLY = "target", "retain-only"
AREA = Column(
    "relearning_area",
    "Relearning area",
    "mean over the steps of a relearning attack of P(held back), minus that of the retain-only model beside it",
    Better.NEAR_ZERO,
)
ATTACKS = (
    AREA,
    *(
        Column(
            f"{kind}_{key}",
            f"{title} {rounding}",
            f"{title} with weights rounded to {rounding}",
            Better.NEITHER,
        )
        for kind, rounding in (("int8", "8 bits"), ("int4", "4 bits"), ("nf4", "NF4"))
        for key, title in (("forget_probability", "P(forget)"), ("model_utility", "Model Utility"))
    ),
)
_SCORE = "score of an audit, in [0, 1]: "
AUDIT = (
    Column("memorization_score", "Memorization", f"{_SCORE}how little the model says of the forget rows", Better.HIGHER),
    Column("privacy_score", "Privacy", f"{_SCORE}harmonic mean of those of membership and depth", Better.HIGHER),
    Column("privacy_mia", "Membership", f"{_SCORE}closeness of four attacks to the retain-only model", Better.HIGHER),
    Column("unlearning_depth", "Depth", "Unlearning Depth Score: 0 is intact, 1 erased as if never seen", Better.HIGHER),
    Column("utility_score", "Utility", f"{_SCORE}utility and fluency beside the target's", Better.HIGHER),
    Column("overall_score", "Overall", f"{_SCORE}harmonic mean of memorization, privacy and utility", Better.HIGHER),
    Column("leak_at_1", "leak@1", "share of rows that leak in one sampled answer", Better.NEAR_RETAIN_ONLY),
    Column("leak_at_64", "leak@64", "share of rows that leak in one of 64 sampled answers", Better.NEAR_RETAIN_ONLY),
)  # fmt: skip
COSTS = (
    Column("learning_rate", "Learning rate", "chosen by the study's rule", Better.NEITHER, digits=6),
    Column("step_seconds", "Seconds a step", "median time from one step to the next", Better.LOWER),
    Column(
        "memory_mib",
        "Memory, MiB",
        "most memory of the process, on a GPU of the allocator",
        Better.LOWER,
        digits=0,
    ),
    Column("steps", "Steps", "optimizer steps", Better.NEITHER, digits=0),
    Column(
        "seconds",
        "Seconds",
        "whole run with evaluations and start, or what followed its last resumption",
        Better.LOWER,
        digits=0,
    ),
)
_OWN = {each.key: each for each in (AREA, *AUDIT)}
# A model compared with itself, by definition of these metrics.
OF_ITSELF = {
    "forget_quality": 1.0,
    "forget_quality_log10_p": 0.0,
    "forget_quality_ks_statistic": 0.0,
    "priv_leak": 0.0,
}


@dataclass(frozen=True)
class Line:
    """Line of the table.

    Attributes:
        name: of the row or model.
        values: values of each metric by seed.
        verdicts: verdict of each seed.
        audits: judgement of each seed's audit.
        failed: seeds whose run failed.
    """

    name: str
    values: Mapping[str, Mapping[int, float]]
    verdicts: Mapping[int, str] = field(default_factory=dict)
    audits: Mapping[int, str] = field(default_factory=dict)
    failed: tuple[int, ...] = ()

    @property
    def seeds(self) -> list[int]:
        """The seeds that were measured."""
        return sorted({seed for each in self.values.values() for seed in each})

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Mean and interval of each metric that at least two seeds have."""
        return {key: bootstrap_mean([*each.values()]) for key, each in self.values.items() if len(each) > 1}

    @property
    def verdict(self) -> str:
        """The verdicts with their numbers, such as `3 partly, 2 forgotten`."""
        return _counted(self.verdicts)

    @property
    def audited(self) -> str:
        """The judgements of audits with their numbers, such as `5 not forgotten`."""
        return _counted(self.audits)


@dataclass(frozen=True)
class Summary:
    """Lines of a study's table.

    Attributes:
        lines: target and retain-only model, then the rows in the study's order.
        columns: headline metrics that were measured.
    """

    lines: tuple[Line, ...]
    columns: tuple[Column, ...]

    def line(self, name: str) -> Line | None:
        """Return the line of this name, if there is one."""
        return next((each for each in self.lines if each.name == name), None)


def study_column(key: str) -> Column:
    """Return the description of a metric of runs, of their audits, or of the relearning area."""
    return _OWN.get(key) or column_of(key)


def summary_of(results: Results) -> Summary:
    """Return the summary of all records that are finished."""
    rows = [_row(results, name) for name in results.study["rows"]]
    measured = {key for each in rows for key in each.values}
    of_itself = {key: value for key, value in OF_ITSELF.items() if key in measured}
    models = [
        _models(results, Kind.TARGET, TARGET, {}),
        _models(results, Kind.RETAIN_ONLY, RETAIN_ONLY, of_itself),
    ]
    lines = [each for each in (*models, *rows) if each.values or each.failed]
    keys = {key for each in lines for key in each.values}
    known = {each.key for each in (*ATTACKS, *AUDIT, *COSTS)}
    return Summary(tuple(lines), tuple(each for each in columns_of(keys - known) if each.headline))


def records_of(results: Results, kind: Kind, row: str | None = None) -> dict[int, Record]:
    """Return the finished records of a kind and row by seed, in order; of models, those that the table's seeds have."""
    seeds = {results.seed_of(kind, each) if row is None else each for each in results.study["file"]["seeds"]}
    found = {
        each["seed"]: each
        for each in _of(results, kind, row)
        if each["status"] == FINISHED and each["seed"] in seeds
    }
    return dict(sorted(found.items()))


def _of(results: Results, kind: Kind, row: str | None) -> Iterator[Record]:
    return (each for each in results.current.values() if (each["kind"], each["row"]) == (str(kind), row))


def _row(results: Results, name: str) -> Line:
    records = records_of(results, Kind.ROW, name)
    values = {seed: {**each["metrics"], **_costs(each)} for seed, each in records.items()}
    theirs = records_of(results, Kind.RELEARN)
    for seed, each in records_of(results, Kind.RELEARN, name).items():
        beside = theirs.get(results.seed_of(Kind.RELEARN, seed))
        if seed in values and beside is not None:
            area = relearning_area(each["curve"], beside["curve"])
            values[seed] |= {} if area is None else {AREA.key: area}
    for seed, each in records_of(results, Kind.QUANTIZE, name).items():
        if seed in values:
            values[seed] |= _quantized(each)
    audits = records_of(results, Kind.AUDIT, name)
    for seed, each in audits.items():
        if seed in values:
            values[seed] |= _scores(each)
    failed = tuple(sorted(each["seed"] for each in _of(results, Kind.ROW, name) if each["status"] == FAILED))
    verdicts = {seed: each["verdict"] for seed, each in records.items() if each.get("verdict")}
    judged = {seed: each["audit"]["status"] for seed, each in audits.items()}
    return Line(name, _by_metric(values), verdicts, judged, failed)


def _models(results: Results, kind: Kind, name: str, of_itself: Mapping[str, float]) -> Line:
    values: dict[int, dict[str, float]] = {}
    for seed, each in records_of(results, kind).items():
        values[seed] = {**each["metrics"], **_costs(each), **of_itself}
    if kind is Kind.TARGET:
        # Values before training are comparable with those after it.
        for row in results.study["rows"]:
            for seed, each in records_of(results, Kind.ROW, row).items():
                if "before" in each:
                    own = results.seed_of(kind, seed)
                    values[own] = values.get(own, {}) | each["before"]
    if kind is Kind.RETAIN_ONLY:
        for seed, each in records_of(results, Kind.QUANTIZE).items():
            if seed in values:
                values[seed] |= _quantized(each)
    for row in results.study["rows"]:
        # An audit of any row of a seed has measured the models beside it.
        for seed, each in records_of(results, Kind.AUDIT, row).items():
            own = results.seed_of(kind, seed)
            values[own] = _scores(each, f"{kind}_") | values.get(own, {})
    return Line(name, _by_metric(values))


def _scores(record: Record, prefix: str = "") -> dict[str, float]:
    """Return the values of an audit that a table shows, of its own model or of one beside it."""
    found = record["metrics"]
    return {each.key: found[prefix + each.key] for each in AUDIT if prefix + each.key in found}


def _counted(by_seed: Mapping[int, str]) -> str:
    counts = Counter(by_seed.values()).most_common()
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts)


def _costs(record: Record) -> dict[str, float]:
    return {each.key: float(record[each.key]) for each in COSTS if record.get(each.key) is not None}


def _quantized(record: Record) -> dict[str, float]:
    """Return the values of a quantization attack that a table shows."""
    shown = {each.key for each in ATTACKS}
    return {
        name: value
        for bits, metrics in record["quantized"].items()
        for key, value in metrics.items()
        if (name := f"{bits}_{key}") in shown
    }


def _by_metric(values: Mapping[int, Mapping[str, float]]) -> dict[str, dict[int, float]]:
    keys = dict.fromkeys(key for each in values.values() for key in each)
    return {key: {seed: each[key] for seed, each in values.items() if key in each} for key in keys}


def versions_of(results: Results, *keys: str) -> list[tuple[Any, ...]]:
    """Return the different values of some facts of all finished records that count, such as their machines."""
    found: list[tuple[Any, ...]] = []
    for each in results.current.values():
        values = tuple(each.get(key) for key in keys)
        if each["status"] == FINISHED and values not in found:
            found.append(values)
    return found
