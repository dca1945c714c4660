"""Table of the metrics that a command shows at its end."""

from collections.abc import Mapping
from typing import Any

from dipo_pl.callbacks.headlines import headlines


def headline_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of the headline metrics, one row for each model.

    Args:
        models: metrics of each model by its name; a metric that was not measured is shown as "-".
    """
    titles = headlines({key for metrics in models.values() for key in metrics})
    width = max(12, *map(len, models))
    lines = [f"{'':{width}}" + "".join(f"{title:>16}" for title in titles)]
    for name, metrics in models.items():
        cells = (_number(metrics[key]) if key in metrics else "-" for key in titles.values())
        lines.append(f"{name:{width}}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def _number(value: float) -> str:
    if 0 < value < 0.001:
        return f"{value:.1e}"
    return f"{value:.5f}" if 0 < value < 0.01 else f"{value:.3f}"
