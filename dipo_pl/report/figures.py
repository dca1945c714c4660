"""How the pictures are drawn. matplotlib is an extra, imported when a picture is drawn."""

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from dipo_pl.report.curves import Gap, Roc, ecdf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

# Okabe and Ito's colours, which colour-blind people can tell apart, darkest first; markers tell them apart in print.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = "osD^vPX*"
_RETAIN_ONLY = "#222222"
_STAGES = "requests made (0: before the first)"


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


class Request(NamedTuple):
    """A figure of what one request asked to forget, by stages; the request was made at `made`."""

    name: str
    made: int
    stages: Sequence[int]
    values: Sequence[float]


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


def utility_by_stage(curves: Sequence[Curve], title: str) -> "Figure":
    """What is kept of a model while requests follow one another; a curve a sequence."""
    figure, axes = _axes(_STAGES, f"{title} (up: keeps more)")
    _draw_utility(axes, curves)
    return _finished(figure, axes)


def requests_by_stage(requests: Sequence[Request], title: str) -> "Figure":
    """Whether what earlier requests forgot comes back; a ring where each was made, dotted before."""
    figure, axes = _axes(_STAGES, f"{title} (down: forgot more)")
    _draw_requests(axes, requests)
    return _finished(figure, axes)


def sequence(curves: Sequence[Curve], utility: str, requests: Sequence[Request], title: str) -> "Figure":
    """Both of the above, of one sequence, side by side; one alone where the other has nothing to draw."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    panels: list[tuple[str, Callable[[Axes], None]]] = []
    if curves:
        panels.append((f"{utility} (up: keeps more)", partial(_draw_utility, curves=curves)))
    if requests:
        panels.append((f"{title} (down: forgot more)", partial(_draw_requests, requests=requests)))
    grid = figure.add_gridspec(1, len(panels), wspace=0.06)
    names = []
    for place, (y, draw) in enumerate(panels):
        part = figure.add_subfigure(grid[0, place])
        axes = _labelled(part.subplots(), _STAGES, y)
        draw(axes)
        names.append(_legend(part, axes))
    figure.set_size_inches(6.2 * len(panels), _height(max(names)))
    return figure


def _draw_utility(axes: "Axes", curves: Sequence[Curve]) -> None:
    for index, curve in enumerate(curves):
        style = _style(index)
        if curve.retain_only:
            style = {"color": _RETAIN_ONLY, "linestyle": "--", "marker": "*"}
        axes.plot(curve.steps, curve.values, markersize=5, linewidth=1.4, label=_label(curve.name), **style)
    _whole_numbers(axes)


def _draw_requests(axes: "Axes", requests: Sequence[Request]) -> None:
    for index, request in enumerate(requests):
        style = _style(index)
        points = list(zip(request.stages, request.values, strict=True))
        before = [each for each in points if each[0] <= request.made]
        since = [each for each in points if each[0] >= request.made]
        axes.plot(*_xy(before), **style | {"linestyle": ":", "alpha": 0.7}, markersize=4, linewidth=1.2)
        axes.plot(*_xy(since), **style, markersize=5, linewidth=1.6, label=_label(request.name))
        made = [each for each in points if each[0] == request.made]
        axes.plot(
            *_xy(made), linestyle="", marker="o", markersize=12, markerfacecolor="none",
            markeredgecolor=style["color"],
        )  # fmt: skip
    axes.plot(
        [], [], linestyle="", marker="o", markersize=10, markerfacecolor="none",
        markeredgecolor=_RETAIN_ONLY, label="the request is made",
    )  # fmt: skip
    axes.set_ylim(min(0.0, axes.get_ylim()[0]))
    _whole_numbers(axes)


def _xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _whole_numbers(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _axes(x: str, y: str) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    return figure, _labelled(figure.subplots(), x, y)


def _labelled(axes: "Axes", x: str, y: str) -> "Axes":
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _steps(axes: "Axes", values: Sequence[float], **style: Any) -> None:
    places, shares = ecdf(values)
    axes.step([places[0] / math.log(10), *places / math.log(10)], [0.0, *shares], where="post", **style)


def _finished(figure: "Figure", axes: "Axes") -> "Figure":
    figure.set_figheight(_height(_legend(figure, axes)))
    return figure


def _legend(figure: "FigureBase", axes: "Axes") -> int:
    """Below the axes; returns how many names are in it."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return len(names)


def _height(names: int) -> float:
    """Of a figure, in inches, such that the legend leaves room for the axes."""
    return 4.4 + 0.2 * max(0, -(-names // 2) - 3)


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
