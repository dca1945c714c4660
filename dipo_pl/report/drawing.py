"""Drawing of plots with matplotlib, an extra that is imported when a plot is drawn."""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipo_pl.report.intervals import Interval
from dipo_pl.storage.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HOW_TO_GET_PLOTS = "plots need matplotlib: pip install 'dipo-pl[plots]'"
# Six colors of Okabe and Ito, distinct for color-blind people, then darker ones of Tol; markers and dashes are distinct in
# print.
_COLORS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00",
    "#332288", "#882255", "#117733", "#999933", "#aa4499", "#661100",
)  # fmt: skip
_MARKERS = "osD^vPX*"
_DASHES = ("-", "-.", (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)))
_DARK = "#222222"
_LEAST_UTILITY = 0.2  # of Model Utility, which an axis shows at least
MANY_CURVES = len(_COLORS) + 1  # with the retain-only model; more cannot be told apart
_LONG_LABEL = 34  # characters; two labels longer than this do not fit beside each other


@dataclass(frozen=True)
class Curve:
    """Values of one model.

    Attributes:
        style: number that color, marker and dashes follow from; None is the retain-only model.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int | None

    @property
    def label(self) -> str:
        """Name in the legend; matplotlib would leave out one that begins with an underscore."""
        return f" {self.name}" if self.name.startswith("_") else self.name

    def line(self, markers: bool = True) -> dict[str, Any]:
        """Return the style of the line."""
        if self.style is None:
            return {"color": _DARK, "linestyle": "--", "marker": "*" if markers else ""}
        return {
            "color": color_of(self.style),
            "marker": _MARKERS[self.style % len(_MARKERS)] if markers else "",
            # Markers tell curves of one color apart; without them dashes must.
            "linestyle": _DASHES[(self.style // len(_COLORS) if markers else self.style) % len(_DASHES)],
        }


@dataclass(frozen=True)
class Plot:
    """A plot that can be drawn.

    Attributes:
        name: name of its file.
        values: what it shows in words, a phrase for each curve.
        draw: draws into axes.
        height: inches of the figure without a legend of many lines.
    """

    name: str
    title: str
    values: Sequence[str]
    x_label: str
    y_label: str
    draw: Callable[["Axes"], None]
    height: float = 4.4

    @property
    def description(self) -> str:
        """Description of the plot for screen readers."""
        return f"{'; '.join(self.values)}."

    def figure(self) -> "Figure":
        """Return the plot as a figure of its own."""
        return side_by_side([self])


def shortened(name: str, length: int) -> str:
    """Return a name without its middle if it is longer than `length` characters."""
    half = length // 2 - 1
    return name if len(name) <= length else f"{name[:half]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"


def color_of(style: int | None) -> str:
    """Return the color of a style, the same in all plots and on the page."""
    return _DARK if style is None else _COLORS[style % len(_COLORS)]


def drawable() -> bool:
    """Return True if matplotlib is installed."""
    return find_spec("matplotlib") is not None


def side_by_side(plots: Sequence[Plot]) -> "Figure":
    """Return a figure with a panel for each plot, its legend below."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    grid = figure.add_gridspec(1, len(plots), wspace=0.06)
    rows = 0
    for place, plot in enumerate(plots):
        part = figure.add_subfigure(grid[0, place])
        axes = part.subplots()
        axes.set(xlabel=plot.x_label, ylabel=plot.y_label, axisbelow=True)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        plot.draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        names = [shortened(each, 2 * _LONG_LABEL) for each in labels]
        columns = 1 if max(map(len, names), default=0) > _LONG_LABEL else 2
        part.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
        rows = max(rows, math.ceil(len(names) / columns))
    # A long legend must leave the axes their height.
    figure.set_size_inches(6.4 * len(plots), max(each.height for each in plots) + 0.2 * max(0, rows - 3))
    return figure


def write_png(path: Path, *plots: Plot) -> None:
    """Write plots side by side as a PNG file.

    Raises:
        ImportError: matplotlib is not installed.
        WriteError: the file cannot be written.
    """
    with _plain_text(), replacing(path) as temporary:
        side_by_side(plots).savefig(temporary, dpi=150, format="png")


def inline_svg(plot: Plot) -> str:
    """Return an `<svg>` element with title and description, which loads nothing."""
    written = io.StringIO()
    with _plain_text(plot.name):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        plot.figure().savefig(written, format="svg", metadata=nothing, transparent=True)
    svg = written.getvalue()
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # Ids must be unique on the page, and plots of the same shape have the same.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{plot.name}-", svg)
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    title, description = f"{plot.name}-title", f"{plot.name}-description"
    return (
        f'{head} role="img" aria-labelledby="{title}" aria-describedby="{description}"><title id="{title}">'
        f'{escape(plot.title)}</title><desc id="{description}">{escape(plot.description)}</desc>{body}'
    )


def draw_curves(
    axes: "Axes",
    curves: Sequence[Curve],
    markers: bool = True,
    whole_steps: bool = False,
    least_span: float = 0.0,
) -> None:
    """Draw curves against a number; label only whole ones with `whole_steps`, and span `least_span` upwards at least."""
    for curve in curves:
        style = curve.line(markers)
        axes.plot(curve.x, curve.y, markersize=5, linewidth=1.4, label=curve.label, **style)
    if whole_steps:
        axes.locator_params(axis="x", integer=True)
    axes.set_ylim(*_widened(axes.get_ylim(), least_span, [value for each in curves for value in each.y]))


def draw_cells(axes: "Axes", curves: Sequence[Curve], label: str) -> None:
    """Draw a row of cells for each curve, their values as numbers and colors: for more curves than can be told apart.

    Args:
        axes: what to draw into.
        curves: their values; a curve without one at a step has an empty cell.
        label: what the values are.
    """
    steps = sorted({step for each in curves for step in each.x})
    known = [dict(zip(each.x, each.y, strict=True)) for each in curves]
    image = axes.imshow(
        [[each.get(step, math.nan) for step in steps] for each in known], aspect="auto", cmap="cividis"
    )
    low, high = image.get_clim()
    for row, values in enumerate(known):
        for step, value in values.items():
            # Numbers are dark on the light colors of high values, and light on the dark ones.
            color = _DARK if value > (low + high) / 2 else "white"
            axes.text(
                steps.index(step), row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=color
            )
    axes.set_xticks(range(len(steps)), [f"{each:g}" for each in steps])
    axes.set_yticks(range(len(curves)), [shortened(each.name, _LONG_LABEL) for each in curves])
    axes.set_ylabel("")
    axes.grid(visible=False)
    axes.figure.colorbar(image, ax=axes, label=label, aspect=40)


def draw_trajectory(
    axes: "Axes", curves: Sequence[Curve], epochs: Sequence[Sequence[float]], retain_only: float | None
) -> None:
    """Draw log10 of Forget Quality against Model Utility, with the epoch beside each point."""
    bottom = min([-2.0, *(value for each in curves for value in each.y)])
    axes.margins(x=0.15)
    draw_curves(axes, curves)
    axes.set_ylim(bottom * 1.08 - 0.1, 0.4 - 0.05 * bottom)
    known_x = [
        *(value for each in curves for value in each.x),
        *([] if retain_only is None else [retain_only]),
    ]
    axes.set_xlim(*_widened((min(known_x), max(known_x)), _LEAST_UTILITY, known_x, margin=0.08))
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    labeled: list[tuple[float, float]] = []
    for curve, known in zip(curves, epochs, strict=True):
        last = len(known) - 1
        # The last first: where points lie upon each other, one epoch is legible.
        for place in (last, 0) if len(curves) > 1 else range(last, -1, -1):
            x, y = (curve.x[place] - left) / (right - left), (curve.y[place] - low) / (high - low)
            if any(abs(x - a) < 0.06 and abs(y - b) < 0.04 for a, b in labeled):
                continue
            labeled.append((x, y))
            axes.annotate(
                f"{known[place]:g}", (curve.x[place], curve.y[place]), (4, 4), textcoords="offset points", fontsize=8,
                color=curve.line()["color"],
            )  # fmt: skip
    if retain_only is not None:
        star = Curve("retain-only (p = 1)", [retain_only], [0.0], None)
        axes.plot(star.x, star.y, markersize=14, label=star.label, **star.line() | {"linestyle": ""})
    level = math.log10(0.05)
    axes.axhspan(level, axes.get_ylim()[1], color="#009e73", alpha=0.1, linewidth=0)
    axes.annotate(
        "same as retain-only by the test (p > 0.05)", (0.01, level), (0, 3), ("axes fraction", "data"),
        textcoords="offset points", fontsize=8, color="#00523b",
    )  # fmt: skip


def draw_distributions(
    axes: "Axes", curves: Sequence[Curve], gaps: Sequence[tuple[float, float, float]]
) -> None:
    """Draw the cumulative distribution of `x` of each curve, the retain-only model last, and gaps (place, two shares)."""
    for curve in curves:
        axes.ecdf(curve.x, label=curve.label, linewidth=1.6, **curve.line(markers=False))
    for curve, (place, one, other) in zip(curves, gaps, strict=False):
        color = curve.line()["color"]
        axes.plot([place, place], [one, other], color=color, linestyle=":", linewidth=2.2, marker="_")


def draw_roc(axes: "Axes", curves: Sequence[Curve]) -> None:
    """Draw ROC curves of membership inference attacks."""
    axes.plot([0, 1], [0, 1], color="#767676", linestyle=":", linewidth=1.2, label="chance (AUC = 0.5)")
    draw_curves(axes, curves, markers=False)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def draw_requests(axes: "Axes", curves: Sequence[Curve]) -> None:
    """Draw the metric of each request by stage: dotted before the request, with a ring at it.

    The request of `style` n is made at stage n + 1.
    """
    ring: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 12, "markerfacecolor": "none"}
    for curve in curves:
        made, style = (curve.style or 0) + 1, curve.line()
        points = dict(zip(curve.x, curve.y, strict=True))
        before = {x: y for x, y in points.items() if x <= made}
        since = {x: y for x, y in points.items() if x >= made}
        dotted = style | {"linestyle": ":", "alpha": 0.7}
        axes.plot(list(before), list(before.values()), markersize=4, linewidth=1.2, **dotted)
        axes.plot(list(since), list(since.values()), markersize=5, linewidth=1.6, label=curve.label, **style)
        if made in points:
            axes.plot([made], [points[made]], markeredgecolor=style["color"], **ring)
    axes.plot([], [], markeredgecolor=_DARK, label="the request", **ring)
    axes.set_ylim(min(0.0, axes.get_ylim()[0]))
    axes.locator_params(axis="x", integer=True)


def draw_intervals(
    axes: "Axes", rows: Mapping[str, tuple[Sequence[float], Interval | None]], references: Mapping[str, float]
) -> None:
    """Draw a line for each row: a small dot for each value, and a large one for their mean with its interval.

    Args:
        axes: what to draw into.
        rows: values and interval of each row by name; a single value has no interval.
        references: values of the models to compare with, drawn from top to bottom.
    """
    for place, (values, interval) in enumerate(rows.values()):
        axes.plot(values, [place] * len(values), "o", color="#56b4e9", markersize=4, alpha=0.8)
        if interval is not None:
            axes.plot(interval[1:], [place, place], color=color_of(0), linewidth=2)
            axes.plot([interval.mean], [place], "o", color=color_of(0), markersize=8)
    axes.plot([], [], "o", color="#56b4e9", markersize=4, label="a seed")
    axes.plot([], [], "o-", color=color_of(0), markersize=8, linewidth=2, label="mean, 95% interval")
    for (name, value), style in zip(references.items(), _DASHES[1:], strict=False):
        axes.axvline(value, color=_DARK, linestyle=style, linewidth=1.2, label=name)
    axes.set_yticks(range(len(rows)), [shortened(each, _LONG_LABEL) for each in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _widened(
    limits: tuple[float, float], span: float, values: Sequence[float], margin: float = 0.0
) -> tuple[float, float]:
    """Return the limits of an axis, at least `span` apart; what is never negative is not shown below 0."""
    low, high = limits
    missing = max(span - (high - low), 0.0) / 2
    low, high = (
        low - missing - margin * max(span, high - low),
        high + missing + margin * max(span, high - low),
    )
    if min(values, default=-1.0) >= 0 and low < 0:
        # A line at 0 must not lie on the frame.
        floor = -0.03 * (high - low)
        low, high = floor, (high - low + floor if missing else high)
    return low, high


@contextmanager
def _plain_text(salt: str | None = None) -> Iterator[None]:
    """Draw names as they are: a dollar starts no formula, and a missing glyph gives no warning."""
    from matplotlib import rc_context

    settings: Any = {"text.parse_math": False, "svg.fonttype": "path", "svg.hashsalt": salt}
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield
