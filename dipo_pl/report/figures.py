"""How the pictures are drawn. matplotlib is an extra, imported when a picture is drawn."""

import math
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from dipo_pl.report.curves import Gap, Roc, ecdf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can tell apart, darkest first; markers tell them apart in print.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = "osD^vPX*"
_RETAIN_ONLY = "#222222"


class Trajectory(NamedTuple):
    """A run's way through training: one value an evaluation of each."""

    name: str
    epochs: Sequence[float]
    utility: Sequence[float]
    log10_p: Sequence[float]


class Curve(NamedTuple):
    """A figure by steps."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    retain_only: bool = False


def trajectory(runs: Sequence[Trajectory], retain_only_utility: float | None = None) -> "Figure":
    """Forget Quality (log10 of its p-value, so that it does not run out) against Model Utility, by epoch."""
    figure, axes = _axes("Model Utility (right: keeps more)", "log10 of Forget Quality (up: forgot better)")
    everything = [each for run in runs for each in run.log10_p]
    bottom = min([-2.0, *everything])
    axes.set_ylim(bottom * 1.08 - 0.1, 0.4 - 0.05 * bottom)
    axes.axhspan(math.log10(0.05), axes.get_ylim()[1], color="#009e73", alpha=0.1, linewidth=0)
    axes.margins(x=0.15)
    for index, run in enumerate(runs):
        style = _style(index)
        axes.plot(run.utility, run.log10_p, markersize=5, linewidth=1.2, label=_label(run.name), **style)
        named = {0, len(run.epochs) - 1} if len(runs) > 1 else range(len(run.epochs))
        for place in named:
            axes.annotate(
                f"{run.epochs[place]:g}", (run.utility[place], run.log10_p[place]),
                xytext=(4, 4), textcoords="offset points", fontsize=8, color=style["color"],
            )  # fmt: skip
    if retain_only_utility is not None:
        axes.plot(
            [retain_only_utility], [0.0], marker="*", markersize=14, linestyle="", color=_RETAIN_ONLY,
            label="retain-only (p = 1)",
        )  # fmt: skip
    axes.annotate(
        "not told from retain-only (p > 0.05)", (0.01, math.log10(0.05)), xycoords=("axes fraction", "data"),
        xytext=(0, 3), textcoords="offset points", fontsize=8, color="#00523b",
    )  # fmt: skip
    return _finished(figure, axes)


def truth_ratios(
    runs: Sequence[tuple[str, Sequence[float], Gap]], retain_only: tuple[str, Sequence[float]]
) -> "Figure":
    """Distribution functions of log truth ratios (nats), the gap of each to the retain-only one's marked."""
    figure, axes = _axes(
        "log10 of truth ratio R (left: true answer likelier)", "share of forget rows with R at most this"
    )
    for index, (name, values, gap) in enumerate(runs):
        style = _line_style(index)
        _steps(axes, values, label=_label(f"{name} (D = {gap.size:.3f})"), linewidth=1.6, **style)
        place = gap.at / math.log(10)
        axes.plot(
            [place, place],
            [gap.one, gap.other],
            color=style["color"],
            linestyle=":",
            linewidth=2.2,
            marker="_",
        )
    _steps(
        axes, retain_only[1], color=_RETAIN_ONLY, label=_label(retain_only[0]),
        linewidth=1.6, linestyle="--",
    )  # fmt: skip
    return _finished(figure, axes)


def membership(runs: Sequence[tuple[str, Roc]]) -> "Figure":
    """How well a score tells forget rows from rows that no model has seen."""
    figure, axes = _axes("share of holdout rows taken for seen", "share of forget rows taken for seen")
    axes.plot([0, 1], [0, 1], color="#767676", linestyle=":", linewidth=1.2, label="chance (AUC = 0.5)")
    for index, (name, curve) in enumerate(runs):
        axes.plot(
            curve.false_positives, curve.true_positives, linewidth=1.6,
            label=_label(f"{name} (AUC = {curve.auc:.3f})"), **_line_style(index),
        )  # fmt: skip
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return _finished(figure, axes)


def relearning(curves: Sequence[Curve], title: str) -> "Figure":
    """Recovery of a figure of the forget set, by steps of fine-tuning on a share of it."""
    figure, axes = _axes("steps of fine-tuning on a share of the forget set", title)
    for index, curve in enumerate(curves):
        style = _style(index)
        if curve.retain_only:
            style = {"color": _RETAIN_ONLY, "marker": "*", "linestyle": "--"}
        axes.plot(curve.steps, curve.values, markersize=5, linewidth=1.4, label=_label(curve.name), **style)
    return _finished(figure, axes)


def _axes(x: str, y: str) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _steps(axes: "Axes", values: Sequence[float], **style: Any) -> None:
    places, shares = ecdf(values)
    axes.step([places[0] / math.log(10), *places / math.log(10)], [0.0, *shares], where="post", **style)


def _finished(figure: "Figure", axes: "Axes") -> "Figure":
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9, frameon=False
    )
    return figure


def _style(index: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": ("-", "-.", (0, (5, 1)))[index // len(_COLOURS) % 3],
    }


def _line_style(index: int) -> dict[str, Any]:
    """Without markers, which would hide a step."""
    dashes = ("-", "-.", (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)))
    return {"color": _COLOURS[index % len(_COLOURS)], "linestyle": dashes[index % len(dashes)]}


def _label(name: str) -> str:
    # matplotlib leaves out what begins with an underscore.
    return f" {name}" if name.startswith("_") else name


@contextmanager
def plain_text() -> "Iterator[None]":
    """Within it, names are drawn as they are: a dollar starts no formula, and a missing glyph no warning."""
    import warnings

    from matplotlib import rc_context

    with rc_context({"text.parse_math": False, "svg.fonttype": "path"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield
