"""Pictures of a study: intervals of each metric, trajectories of training, and curves of the relearning attack."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import partial
from statistics import fmean
from typing import Any

from dipo_pl.commands.study.measure import HELD_BACK
from dipo_pl.commands.study.plan import Kind
from dipo_pl.commands.study.results import Record, Results
from dipo_pl.commands.study.summary import AREA, RETAIN_ONLY, TARGET, Summary, records_of, study_column
from dipo_pl.report import drawing
from dipo_pl.report.drawing import Curve, Plot

INTERVALS = (
    "forget_quality_log10_p", "forget_probability", "forget_rouge_l_recall", "model_utility", "priv_leak",
    "membership_min_k_auc", AREA.key, "overall_score",
)  # fmt: skip
TRAJECTORIES = ("forget_probability", "forget_quality_log10_p", "model_utility", "retain_probability")
LEVEL = 0.05  # of Forget Quality


def plots_of(results: Results, summary: Summary) -> list[Plot]:
    """Return all pictures for which there are values."""
    return [*_intervals(summary), *_trajectories(results), *_relearning(results)]


def _intervals(summary: Summary) -> Iterator[Plot]:
    for key in INTERVALS:
        column = study_column(key)
        rows = {
            line.name: ([*line.values[key].values()], line.intervals.get(key))
            for line in summary.lines
            if key in line.values and line.name not in (TARGET, RETAIN_ONLY)
        }
        if not rows:
            continue
        references = {
            name: fmean(line.values[key].values())
            for name in (RETAIN_ONLY, TARGET)
            if (line := summary.line(name)) is not None and line.values.get(key)
        }
        if key == "forget_quality_log10_p":
            references = {f"p = {LEVEL:g}": math.log10(LEVEL)} | references
        if key == AREA.key:
            references = {RETAIN_ONLY: 0.0}
        described = [f"{name} {fmean(values):.3f}" for name, (values, _) in rows.items()]
        described += [f"{name} {value:.3f}" for name, value in references.items()]
        draw = partial(drawing.draw_intervals, rows=rows, references=references)
        yield Plot(
            key,
            column.title,
            described,
            f"{column.title} ({column.better.value})",
            "",
            draw,
            _height(rows),
        )


def _height(rows: Sized) -> float:
    """Return the inches of a plot with a line for each row."""
    return 1.8 + 0.3 * len(rows)


def _trajectories(results: Results) -> Iterator[Plot]:
    for key in TRAJECTORIES:
        curves = _mean_curves(results, Kind.ROW, lambda record: record.get("trajectory", ()), key)
        if any(len(each.x) > 2 for each in curves):
            title = study_column(key).title
            yield _curves_plot(
                f"trajectory_{key}", f"{title} during training: mean over seeds", "steps", title, curves
            )


def _relearning(results: Results) -> Iterator[Plot]:
    if curves := _mean_curves(results, Kind.RELEARN, lambda record: record["curve"], HELD_BACK):
        title = "Relearning: mean over seeds of P(held back)"
        steps = "steps of fine-tuning on a share of the forget set"
        yield _curves_plot("relearning", title, steps, "P(held back)", curves)


def _mean_curves(
    results: Results, kind: Kind, evaluations: Callable[[Record], Iterable[Mapping[str, Any]]], key: str
) -> list[Curve]:
    """Return a metric by step, the mean over the seeds that have it there, of the retain-only model and each row."""
    curves = []
    for style, name in [(None, None), *enumerate(results.study["rows"])]:
        by_step: dict[float, list[float]] = {}
        for record in records_of(results, kind, name).values():
            for each in evaluations(record):
                if key in each:
                    by_step.setdefault(each["step"], []).append(each[key])
        if by_step:
            steps = sorted(by_step)
            curves.append(Curve(name or RETAIN_ONLY, steps, [fmean(by_step[each]) for each in steps], style))
    return curves


def _curves_plot(name: str, title: str, x: str, y: str, curves: list[Curve]) -> Plot:
    described = [f"{each.name} {each.y[0]:.3f} to {each.y[-1]:.3f}" for each in curves]
    if len(curves) > drawing.MANY_CURVES:
        cells = partial(drawing.draw_cells, curves=curves, label=y)
        return Plot(name, title, described, x, y, cells, _height(curves))
    draw: Any = partial(drawing.draw_curves, curves=curves, whole_steps=True, least_span=0.2)
    return Plot(name, title, described, x, y, draw)
