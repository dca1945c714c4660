"""The report as one HTML page, which loads nothing and works without a network."""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

from dipo_pl.report.contents import Report
from dipo_pl.report.generations import Answered, side_by_side
from dipo_pl.report.markup import missing
from dipo_pl.report.page_tables import figures_by_epoch, meanings, quantization, results, seeds, stages
from dipo_pl.report.pictures import HOW_TO_GET_PICTURES, Pictures, all_pictures, drawable
from dipo_pl.report.provenance import facts
from dipo_pl.report.svg import inline_svg
from dipo_pl.version import __version__


def as_html(report: Report) -> str:
    """Every text of the runs is escaped, and the page runs no script but its own."""
    pictures = {each.name: each for each in all_pictures(report)}
    answered = side_by_side(report.runs)
    sections = [
        ("forgotten", "What was forgotten, and when", facts(report)),
        ("results", "Results", _results(report)),
        ("seeds", "Several seeds", seeds(report)),
        (
            "sequences",
            pictures["sequences"].title,
            _pictures(pictures["sequences"]) + stages(report),
        ),
        (
            "trajectory",
            pictures["trajectory"].title,
            _pictures(pictures["trajectory"]) + figures_by_epoch(report),
        ),
        *((name, pictures[name].title, _pictures(pictures[name])) for name in ("truth-ratio", "membership")),
        ("generations", "Generations side by side", _generations(answered)),
        ("relearning", pictures["relearning"].title, _pictures(pictures["relearning"])),
        ("quantization", "Quantisation", quantization(report)),
        ("meanings", "What the figures mean", meanings(report)),
    ]
    script = _part("page.js")
    return Template(_part("page.html")).substitute(
        names=escape(", ".join(each.name for each in report.runs)),
        made=report.made,
        version=__version__,
        convention=escape(report.convention),
        links="".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections),
        sections="\n".join(
            f'<section id="{name}" aria-labelledby="{name}-heading"><h2 id="{name}-heading">{title}</h2>\n{body}\n</section>'
            for name, title, body in sections
        ),
        style=_part("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _part(name: str) -> str:
    return files("dipo_pl.report").joinpath(name).read_text(encoding="utf-8")


def _results(report: Report) -> str:
    kinds = dict.fromkeys(row.kind for row in report.table.rows)
    options = "".join(f'<option value="{each}">{each}</option>' for each in kinds)
    notes = "".join(f"<li>{escape(each)}</li>" for each in report.notes)
    left_out = "".join(f"<li>{escape(each)}</li>" for each in report.left_out)
    return (
        '<div class="controls" role="group" aria-label="Filter the results">'
        '<label>Model <input type="search" id="model-filter" autocomplete="off"></label>'
        '<label>Kind <select id="kind-filter" data-of="kind"><option value="">all</option>'
        f"{options}</select></label>"
        '<label class="tick"><input type="checkbox" id="every-figure"> all figures</label>'
        '<span id="model-count" role="status" class="quiet"></span></div>'
        + results(report)
        + (f"<h3>Notes</h3><ul>{notes}</ul>" if notes else "")
        + (f"<h3>Left out</h3><ul>{left_out}</ul>" if left_out else "")
    )


def _pictures(pictures: Pictures) -> str:
    if not pictures.pictures:
        return missing(pictures.missing)
    if not drawable():
        described = "".join(
            f"<p>{escape(f'{each.title}: {each.description}')}</p>" for each in pictures.pictures
        )
        return missing(HOW_TO_GET_PICTURES[0].upper() + HOW_TO_GET_PICTURES[1:]) + described
    figures = "".join(
        f"<figure>{inline_svg(each)}<figcaption><strong>{escape(each.title)}.</strong> "
        f"{escape(each.caption)}</figcaption></figure>"
        for each in pictures.pictures
    )
    return f'<div class="pictures">{figures}</div>'


def _generations(answered: Sequence[Answered]) -> str:
    if not answered:
        return missing("No run here has generated answers: evaluate with forget_quality.generate_every 1.")
    sets = dict.fromkeys(each.set_name for each in answered)
    options = "".join(f"<option>{escape(each)}</option>" for each in sets)
    return (
        '<div class="controls" role="search" aria-label="Search the generations">'
        '<label>Words <input type="search" id="row-search" autocomplete="off"></label>'
        '<label>Set <select id="set-filter" data-of="set"><option value="">all</option>'
        f"{options}</select></label>"
        '<span id="row-count" role="status" class="quiet"></span></div>' + "".join(map(_row, answered))
    )


def _row(each: Answered) -> str:
    texts = [*([("truth", each.truth)] if each.truth else []), *each.answers]
    pairs = "".join(f"<div><dt>{escape(who)}</dt><dd>{escape(text)}</dd></div>" for who, text in texts)
    place = escape(f"{each.set_name} {each.row}")
    return (
        f'<article class="row" data-set="{escape(each.set_name)}"><h3>{escape(each.question) or place} '
        f'<small class="quiet">{place}</small></h3><dl>{pairs}</dl></article>'
    )
