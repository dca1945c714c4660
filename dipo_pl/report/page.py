"""The report as one HTML page, which loads nothing and works without a network."""

import base64
import hashlib
import math
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dipo_pl.report.columns import AUC_SCALE
from dipo_pl.report.compare import attacked_run
from dipo_pl.report.contents import Report
from dipo_pl.report.drawing import HOW_TO_GET_PLOTS, drawable, inline_svg
from dipo_pl.report.generations import generated_rows
from dipo_pl.report.plots import all_plots
from dipo_pl.report.run import Kind, Run, lookup
from dipo_pl.report.seeds import seed_table
from dipo_pl.report.sequences import stage_table
from dipo_pl.version import __version__


def as_html(report: Report) -> str:
    """Return the page. Every text of the runs is escaped, and the page runs no script but its own."""
    environment = Environment(
        loader=PackageLoader("dipo_pl.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters["class_name"] = lambda part: str(lookup(part, "class_path") or "").rpartition(".")[2]
    script = _part("page.js")
    return environment.get_template("page.html").render(
        report=report,
        version=__version__,
        plots=all_plots(report),
        drawable=drawable(),
        how_to_get_plots=HOW_TO_GET_PLOTS[0].upper() + HOW_TO_GET_PLOTS[1:],
        svg=lambda plot: Markup(inline_svg(plot)),
        truth_ratios=any(each.scores("log_truth_ratio") for each in report.runs),
        auc_scale=AUC_SCALE,
        generated=generated_rows(report.runs),
        seeds=seed_table(report.seeds, report.results.headlines.columns) if report.seeds else None,
        stages=[stage_table(each, report.utility_metric) for each in report.sequences],
        quantized=_quantized(report),
        lowest_log10_p=_lowest_log10_p(report.runs),
        lookup=lookup,
        style=Markup(_part("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _lowest_log10_p(runs: Sequence[Run]) -> tuple[int, float] | None:
    """Return the number of forget rows and the lowest possible log10 p, if all runs have as many rows."""
    sizes = {len(each.scores("log_truth_ratio")) for each in runs} - {0}
    if len(sizes) != 1:
        return None
    (n,) = sizes
    return n, math.log10(2) - math.log10(math.comb(2 * n, n))


def _quantized(report: Report) -> list[tuple[Run, str]]:
    """Return each run that was quantized and the quantized models below it, with what their weights are."""
    groups: dict[str, list[tuple[Run, str]]] = {}
    for probe in report.of_kind(Kind.QUANTIZED):
        attacked = attacked_run(probe, report.runs)
        group = groups.setdefault((attacked or probe).name, [(attacked, "as trained")] if attacked else [])
        group.append((probe, f"int{probe.bits or '?'}"))
    return [each for group in groups.values() for each in group]


def _part(name: str) -> str:
    return files("dipo_pl.report").joinpath("templates", name).read_text(encoding="utf-8")
