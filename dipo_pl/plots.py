"""Pictures of results. matplotlib is an extra, imported when a picture is drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dipo_pl.run_folder import replacing


def plot_trajectory(trajectory: Sequence[dict[str, Any]], retain_only_utility: float, path: Path) -> None:
    """Forget Quality against Model Utility, one point an evaluation, as PNG.

    Args:
        trajectory: evaluations with `epoch`, `forget_quality` and `model_utility`.
        retain_only_utility: of the model that unlearning is to come near; its Forget Quality is 1.
    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    utility = [each["model_utility"] for each in trajectory]
    quality = [each["forget_quality"] for each in trajectory]
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.axhspan(0.05, 1.0, color="tab:green", alpha=0.08)
    axes.annotate(
        "not told from retain-only (p > 0.05)", (0.01, 0.06), xycoords=("axes fraction", "data"), fontsize=8
    )
    axes.margins(x=0.25)
    axes.plot(utility, quality, color="tab:gray", linewidth=1, zorder=1)
    points = axes.scatter(
        utility, quality, c=[each["epoch"] for each in trajectory], cmap="viridis", zorder=2
    )
    figure.colorbar(points, label="epoch")
    for name, index in {"target": 0, "unlearned": -1}.items():
        axes.annotate(name, (utility[index], quality[index]), xytext=(6, -12), textcoords="offset points")
    axes.scatter([retain_only_utility], [1.0], marker="*", s=140, color="tab:orange", zorder=3)
    axes.annotate("retain-only", (retain_only_utility, 1.0), xytext=(6, -14), textcoords="offset points")
    axes.set_yscale("log")
    axes.set_xlabel("Model Utility (higher: keeps more)")
    axes.set_ylabel("Forget Quality, KS p-value (higher: forgot better)")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
