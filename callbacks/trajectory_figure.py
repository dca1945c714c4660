"""Figure of a run's trajectory: what is still known of the forget set against utility, at each evaluation."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dipo_pl.evaluation.verdict_rules import UTILITIES, forgotten_set
from dipo_pl.report.drawing import drawable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DASHED: dict[str, Any] = {"color": "#222222", "linestyle": "--", "linewidth": 1.0}


def trajectory_figure(
    records: Sequence[Mapping[str, Any]], thresholds: Mapping[str, float]
) -> "Figure | None":
    """Return the figure; None without matplotlib, or if fewer than two evaluations measured both.

    Args:
        records: the evaluations of a run, as in metrics.jsonl.
        thresholds: by metric, drawn as dashed lines.
    """
    known = f"{forgotten_set(records[0])}_probability"
    kept = next((each for each in UTILITIES if each in thresholds), "model_utility")
    points = [(each[kept], each[known], each["step"]) for each in records if {kept, known} <= each.keys()]
    if len(points) < 2 or not drawable():
        return None
    # An extra, which takes half a second to import.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([x for x, *_ in points], [y for _, y, _ in points], marker="o", color="#0072b2", linewidth=1.4)
    for x, y, step in points:
        axes.annotate(f"step {step}", (x, y), (5, 5), textcoords="offset points", fontsize=8)
    for draw, name in ((axes.axvline, kept), (axes.axhline, known)):
        if name in thresholds:
            draw(thresholds[name], **DASHED)
    bounds = [
        f" (dashed: at {'least' if name == kept else 'most'} this)" if name in thresholds else ""
        for name in (kept, known)
    ]
    axes.set(
        title="Down: forgotten; right: the rest kept",
        xlabel=f"{UTILITIES[kept]}{bounds[0]}",
        ylabel=f"P(forget){bounds[1]}",
    )
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(0.15)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    return figure
