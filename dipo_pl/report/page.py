"""The report as one HTML page, which loads nothing and works without a network."""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dipo_pl.report.audits import audit_table
from dipo_pl.report.cards import Card, cards
from dipo_pl.report.columns import AUC_SCALE
from dipo_pl.report.compare import attacked_run
from dipo_pl.report.contents import Report
from dipo_pl.report.drawing import HOW_TO_GET_PLOTS, Plot, color_of, drawable, inline_svg
from dipo_pl.report.generations import generated_rows
from dipo_pl.report.leaks import Leaks
from dipo_pl.report.plots import all_plots, style_of
from dipo_pl.report.registers import register_table
from dipo_pl.report.results import Row
from dipo_pl.report.run import Kind, Run, lookup
from dipo_pl.report.seeds import seed_table
from dipo_pl.report.sequences import stage_table
from dipo_pl.report.texts import Texts
from dipo_pl.version import __version__

Plots = Mapping[str, Sequence[Plot]]
# More than this of anything that each run has is folded, so that the page of a few runs can be read on a phone.
_CARDS, _LEAKING_ROWS, _LEAKING_ROWS_OF_ALL = 6, 5, 6

_NO_FORGET_QUALITY = (
    "No unlearning run has it and Model Utility. Fit a retain-only model (a fine-tuning config with --config "
    "retain_only.yaml), and give its run folder to the unlearning run as --forget_quality.retain_result."
)
_NO_WRONG_ANSWERS = "It compares truth ratios, and no forget row has perturbed answers (as in MUSE)."


def as_html(report: Report) -> str:
    """Return the page. Every text of the runs is escaped, and the page runs no script but its own."""
    environment = Environment(
        loader=PackageLoader("dipo_pl.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters["class_name"] = lambda part: str(lookup(part, "class_path") or "").rpartition(".")[2]
    script, plots = _part("page.js"), all_plots(report)
    generated, quantized = generated_rows(report.runs), _quantized(report)
    return environment.get_template("page.html").render(
        report=report,
        version=__version__,
        cards=cards(report),
        cards_shown=_CARDS,
        leaks_shown=max(1, min(_LEAKING_ROWS, _LEAKING_ROWS_OF_ALL // max(1, len(report.leaks)))),
        masked=report.texts is not Texts.FULL,
        sections=_sections(report, plots, bool(generated), bool(quantized)),
        not_tested=_not_tested(report, plots, bool(quantized)),
        plots=plots,
        drawable=drawable(),
        how_to_get_plots=HOW_TO_GET_PLOTS[0].upper() + HOW_TO_GET_PLOTS[1:],
        svg=lambda plot: Markup(inline_svg(plot)),
        color_of=lambda of: _color(report, of),
        auc_scale=AUC_SCALE,
        generated=generated,
        seeds=seed_table(report.seeds, report.results.headlines.columns) if report.seeds else None,
        stages=[stage_table(each, report.utility_metric) for each in report.sequences],
        quantized=quantized,
        audits=list(map(audit_table, report.audits)),
        registers=list(map(register_table, report.registers)),
        lowest_log10_p=_lowest_log10_p(report.runs),
        lookup=lookup,
        style=Markup(_part("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _sections(report: Report, plots: Plots, generated: bool, quantized: bool) -> set[str]:
    """Return the sections that have content."""
    optional = {
        "leaks": report.leaks,
        "trajectory": plots["trajectory"],
        "truth-ratio": plots["truth_ratio"],
        "membership": plots["membership"],
        "audits": report.audits,
        "attacks": plots["relearning"] or quantized,
        "continual": report.sequences,
        "seeds": report.seeds,
        "generations": generated,
    }
    return {
        "verdicts",
        "results",
        "definitions",
        "provenance",
        *(key for key, has in optional.items() if has),
    }


def _not_tested(report: Report, plots: Plots, quantized: bool) -> list[tuple[str, str]]:
    """Return what nothing of the report tells, each with how to get it."""
    found = []
    if not plots["trajectory"]:
        known = any(each.scores("log_truth_ratio") for each in report.runs)
        found.append(("Forget Quality", _NO_FORGET_QUALITY if known else _NO_WRONG_ANSWERS))
    elif not plots["truth_ratio"]:
        how = "Add the retain-only run, or name it with --retain-only."
        found.append(("Distributions of truth ratios", how))
    if not plots["membership"]:
        how = "It needs rows that no model has seen among the evaluation sets: give --data.holdout."
        found.append(("Membership inference", how))
    if not plots["relearning"]:
        how = (
            "Run dipo-pl relearn on the unlearning and the retain-only run, and add the runs that it writes."
        )
        found.append(("Relearning", how))
    if not quantized:
        how = "Run dipo-pl quantize on the unlearning run, and add the runs that it writes."
        found.append(("Quantization", how))
    if not report.seeds:
        how = (
            "No two runs have one config under different seeds: give each a --seed_everything and a --name, and "
            "add their folders."
        )
        found.append(("Several seeds", how))
    if not any(each.answered for each in report.leaks):
        found.append(("Generated answers", "Evaluate with --forget_quality.generate_every 1."))
    return found


def _color(report: Report, of: Card | Row | Leaks) -> str | None:
    """Return the color of a run in plots; None for a row that is no run of its own."""
    if isinstance(of, Leaks):
        return color_of(style_of(report, next(each for each in report.runs if each.name == of.run)))
    return color_of(style_of(report, of.run)) if isinstance(of, Card) or of.kind is not Kind.BEFORE else None


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
        group.append((probe, probe.rounding or "int?"))
    return [each for group in groups.values() for each in group]


def _part(name: str) -> str:
    return files("dipo_pl.report").joinpath("templates", name).read_text(encoding="utf-8")
