"""How time and memory of a step grow with rows, tokens and vocabulary: `python tests/benchmarks/scaling.py`.

One of the three changes at a time, in a Llama 384 wide with 6 layers, float32. Straight lines are fitted to the medians of
steps and to the greatest memory of a step less weights and moments, as in `make bench`; their slopes stand in the table
and on the picture, each with the largest distance of a point from its line, as a share of the largest point.

Tokens are those of a row, a third of them prompt; attention is quadratic in them. A row is a forget row and a retain row.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cases import CASES, PLAIN_GRADDIFF
from matplotlib import pyplot as plt
from processes import in_process
from sizes import SMALL, Size
from worker import inspect, seconds

BASE = replace(SMALL, rows=4, time=96, vocabulary=16_000)
AXES = {"rows": (2, 4, 8, 16), "time": (48, 96, 192, 384), "vocabulary": (8_000, 16_000, 32_000, 64_000)}
TINY = {"rows": (1, 2, 3), "time": (6, 12, 18), "vocabulary": (32, 64, 96)}
NAMES = {"rows": ("rows", "row"), "time": ("tokens of a row", "token"), "vocabulary": ("vocabulary", "entry")}
DEFAULT = ("DiPO, StoredStates", f"{PLAIN_GRADDIFF}, none")
QUANTITIES = {"seconds": "seconds a step", "mib": "MiB"}
UNITS = {"seconds": (("s", 1.0), ("ms", 1e3), ("µs", 1e6)), "mib": (("MiB", 1.0), ("KiB", 1024.0))}


@dataclass(frozen=True)
class Line:
    """A straight line through points.

    Attributes:
        slope: by one more of what changes.
        start: at 0.
        distance: largest distance of a point from the line, as a share of the largest point.
    """

    slope: float
    start: float
    distance: float

    @classmethod
    def through(cls, places: Sequence[float], values: Sequence[float]) -> "Line":
        slope, start = np.polyfit(places, values, 1)
        away = np.abs(np.polyval([slope, start], places) - values).max()
        return cls(float(slope), float(start), float(away / np.max(values)))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=DEFAULT, metavar="CASE", help="their whole names"
    )
    parser.add_argument("--steps", type=int, default=3, help="that are timed at each point")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    parser.add_argument("--smoke", action="store_true", help="sizes that cost nothing")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="a folder")
    options = parser.parse_args()
    base, axes = (BASE.tiny(), TINY) if options.smoke else (BASE, AXES)
    points = measured(base, axes, options)
    lines = fitted(points)
    options.output.mkdir(parents=True, exist_ok=True)
    record = {
        "size": str(base),
        "threads": options.threads,
        "clock": options.clock,
        "points": points,
        "lines": lines,
    }
    (options.output / "scaling.json").write_text(json.dumps(record, indent=2) + "\n")
    (options.output / "scaling.md").write_text(table := as_table(lines))
    draw(points, lines, options.output / "scaling.png")
    print(f"{table}\n{options.output}/scaling.png, .md and .json")
    return 0


def measured(base: Size, axes: dict[str, Sequence[int]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A point of each case and each value of what changes; the one that all axes share is measured once."""
    known: dict[tuple[str, Size], tuple[float, float]] = {}
    points = []
    for axis, values in axes.items():
        for value in values:
            size = replace(base, **{axis: value}, prompts=None)
            for key in options.cases:
                if (key, size) not in known:
                    memory = in_process(inspect, key, size, options.threads).peak_mib
                    steps = in_process(seconds, key, size, options.threads, 1, options.steps, options.clock)
                    known[key, size] = statistics.median(steps), memory
                time, memory = known[key, size]
                print(
                    f"{key}: {axis} {value:,}: {time:.3f} s, {memory:,.0f} MiB", file=sys.stderr, flush=True
                )
                points.append({"case": key, "axis": axis, "value": value, "seconds": time, "mib": memory})
    return points


def fitted(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each case, axis and quantity."""
    lines = []
    for case, axis in dict.fromkeys((each["case"], each["axis"]) for each in points):
        own = [each for each in points if (each["case"], each["axis"]) == (case, axis)]
        for quantity in QUANTITIES:
            line = Line.through([each["value"] for each in own], [each[quantity] for each in own])
            lines.append({"case": case, "axis": axis, "quantity": quantity, **vars(line)})
    return lines


def named(line: dict[str, Any]) -> str:
    """A slope with its unit."""
    units = UNITS[line["quantity"]]
    # The first unit in which the slope has a digit before the point, else the smallest.
    unit, scale = next((each for each in units if abs(line["slope"]) * each[1] >= 1), units[-1])
    return f"{line['slope'] * scale:.3g} {unit} per {NAMES[line['axis']][1]}"


def as_table(lines: list[dict[str, Any]]) -> str:
    rows = [
        "| Case | grows with | time | off the line | memory | off the line |",
        "|---|---|---|---|---|---|",
    ]
    for time, memory in zip(lines[::2], lines[1::2], strict=True):
        rows.append(
            f"| {time['case']} | {NAMES[time['axis']][0]} | {named(time)} | {time['distance']:.0%} | {named(memory)} | "
            f"{memory['distance']:.0%} |"
        )
    return "\n".join(rows) + "\n"


def draw(points: list[dict[str, Any]], lines: list[dict[str, Any]], file: Path) -> None:
    """Time in the upper row, memory in the lower one, a column for each of what changes."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    axes = list(dict.fromkeys(each["axis"] for each in points))
    figure, panels = plt.subplots(2, len(axes), figsize=(10.5, 5.6), layout="constrained")
    colors = dict(zip(dict.fromkeys(each["case"] for each in points), plt.cm.tab10.colors, strict=False))
    for line in lines:
        panel = panels[list(QUANTITIES).index(line["quantity"]), axes.index(line["axis"])]
        own = [each for each in points if (each["case"], each["axis"]) == (line["case"], line["axis"])]
        places = np.array([0, max(each["value"] for each in own)])
        color = colors[line["case"]]
        panel.plot(
            [each["value"] for each in own], [each[line["quantity"]] for each in own], "o", ms=4, color=color
        )
        label = f"{line['case']}: {named(line)}"
        panel.plot(places, line["start"] + line["slope"] * places, lw=1, color=color, label=label)
        panel.set(xlabel=NAMES[line["axis"]][0], ylabel=QUANTITIES[line["quantity"]])
    # A limit ends autoscaling, so it comes after the last line; room above is for the legend.
    for panel in panels.flat:
        panel.set_ylim(0, panel.get_ylim()[1] * 1.15)
        panel.legend(frameon=False, fontsize=7, loc="upper left")
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    raise SystemExit(main())
