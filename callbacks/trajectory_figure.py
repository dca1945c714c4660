"""Figure of a run's trajectory: what is still known of the forget set against utility, at each evaluation."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dipo_pl.evaluation.verdict_rules import UTILITIES
from dipo_pl.report.drawing import drawable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DASHED: dict[str, Any] = {"color": "#222222", "linestyle": "--", "linewidth": 1.0}


def trajectory_figure(
    records: Sequence[Mapping[str, Any]], thresholds: Mapping[str, float], forgotten: Sequence[str]
) -> "Figure | None":
    """Return the figure; None without matplotlib, or if fewer than two evaluations measured both.

    Args:
        records: the evaluations of a run, as in metrics.jsonl.
        thresholds: by metric, drawn as dashed lines.
        forgotten: names of the evaluation sets that are to be forgotten; the one that is known best is drawn.
    """
    known = [f"{rows}_probability" for rows in forgotten]
    kept = next((each for each in UTILITIES if each in thresholds), "model_utility")
    points = [
        (each[kept], max(each[name] for name in known), each["step"])
        for each in records
        if {kept, *known} <= each.keys()
    ]
    if len(points) < 2 or not drawable():
        return None
    # An extra, which takes half a second to import.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([x for x, *_ in points], [y for _, y, _ in points], marker="o", color="#0072b2", linewidth=1.4)
    for x, y, step in points:
        axes.annotate(f"step {step}", (x, y), (5, 5), textcoords="offset points", fontsize=8)
    least = thresholds.get(kept)
    most = min((thresholds[name] for name in known if name in thresholds), default=None)
    for draw, bound in ((axes.axvline, least), (axes.axhline, most)):
        if bound is not None:
            draw(bound, **DASHED)
    axes.set(
        title="Down: forgotten; right: the rest kept",
        xlabel=f"{UTILITIES[kept]}{'' if least is None else ' (dashed: at least this)'}",
        ylabel=f"P(forget){'' if most is None else ' (dashed: at most this)'}",
    )
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(0.15)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    return figure
