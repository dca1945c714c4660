"""Draw the picture of README.md from the run folders of `make demo`: python docs/images/draw_demo.py runs FILE."""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt


def read(run: Path) -> list[dict[str, Any]]:
    """Return the evaluations of a run, in order of steps."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def draw(runs: Path, file: Path) -> None:
    """Plot probabilities and utility on the left, Forget Quality on the right, one point per evaluation."""
    evaluations, retain_only = read(runs / "demo"), read(runs / "demo_target-retain_only")[-1]
    epochs = [each["epoch"] for each in evaluations]
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.9), layout="constrained")
    lines = {
        "P(retain)": ("retain_probability", "#0072b2"),
        "Model Utility": ("model_utility", "#009e73"),
        "P(forget)": ("forget_probability", "#d55e00"),
    }
    for title, (key, color) in lines.items():
        left.plot(epochs, [each[key] for each in evaluations], "o-", ms=3.5, color=color, label=title)
        left.axhline(retain_only[key], color=color, ls="--", lw=0.9)
    left.set(ylim=(0, 1.04), xlabel="epoch of unlearning", title="Forgotten and kept")
    left.legend(frameon=False, loc="center right")
    quality = [each["forget_quality_log10_p"] for each in evaluations]
    right.plot(epochs, quality, "o-", ms=3.5, color="#cc79a7")
    right.axhline(0, color="#cc79a7", ls="--", lw=0.9)
    right.axhspan(-1.301, 0.3, color="#009e73", alpha=0.12, lw=0)
    right.text(0.1, -1.0, "not distinguishable from retain-only (p > 0.05)", fontsize=8, color="#00573f")
    right.set(
        ylim=(min(quality) - 0.4, 0.3), xlabel="epoch of unlearning", title="Forget Quality (log10 of p)"
    )
    for axes in (left, right):
        axes.grid(color="#e5e5e5", lw=0.7)
        axes.set_axisbelow(True)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
