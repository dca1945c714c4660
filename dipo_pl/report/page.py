"""The report as one HTML page, which loads nothing and works without a network."""

import base64
import hashlib
import math
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
from dipo_pl.report.table import Table
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
        evaluations=evaluation_table(report),
        quantized=quantization_table(report),
        definitions=definition_table(report),
        lookup=lookup,
        style=Markup(_part("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def evaluation_table(report: Report) -> Table | None:
    """Return all evaluations of the runs that have several."""
    runs = [each for each in report.runs if len(each.evaluations) > 1]
    keys = {key for run in runs for each in run.evaluations for key in each.metrics}
    columns = [each for each in report.results.headlines.columns if each.key in keys]
    rows = [
        [
            run.name,
            *("" if value is None else f"{value:g}" for value in (each.epoch, each.step)),
            *(column.text(each.metrics.get(column.key)) for column in columns),
        ]
        for run in runs
        for each in run.evaluations
    ]
    head = ["run", "epoch", "step", *(each.title for each in columns)]
    return Table("Metrics by epoch", "All evaluations of all runs.", head, rows) if rows else None


def quantization_table(report: Report) -> Table | None:
    """Return each run that was quantized, with the quantized models below it."""
    groups: dict[str, list[tuple[Run, str]]] = {}
    for probe in report.of_kind(Kind.QUANTIZED):
        attacked = attacked_run(probe, report.runs)
        group = groups.setdefault(
            attacked.name if attacked else probe.name, [(attacked, "")] if attacked else []
        )
        group.append((probe, f"int{probe.bits or '?'}"))
    shown = [each for group in groups.values() for each in group]
    columns = [
        each for each in report.results.headlines.columns if any(each.key in run.metrics for run, _ in shown)
    ]
    rows = [
        [run.name, weights or "as trained", *(each.text(run.metrics.get(each.key)) for each in columns)]
        for run, weights in shown
    ]
    caption = "The same evaluation with weights rounded to few bits. What was only hidden may come back."
    head = ["model", "weights", *(each.title for each in columns)]
    return Table("Quantization", caption, head, rows, labels=2) if rows else None


def definition_table(report: Report) -> Table:
    """Return the meaning of each metric of the report."""
    caption = f"Convention {report.convention}."
    sizes = {len(each.scores("log_truth_ratio")) for each in report.runs} - {0}
    if len(sizes) == 1:
        (n,) = sizes
        floor = math.log10(2) - math.log10(math.comb(2 * n, n))
        caption += f" With {n} forget rows log10 p is at least {floor:.2f}, where the two distributions do not overlap."
    rows = [[each.title, each.meaning, each.better.value] for each in report.results.columns]
    return Table("Definitions", caption, ["metric", "meaning", "better"], rows, labels=3)


def _part(name: str) -> str:
    return files("dipo_pl.report").joinpath("templates", name).read_text(encoding="utf-8")
