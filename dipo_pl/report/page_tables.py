"""The tables of the page."""

from collections.abc import Sequence
from html import escape

from dipo_pl.report.contents import Report
from dipo_pl.report.markup import NOT_MEASURED, missing, table_html
from dipo_pl.report.runs import FORGET, Kind, Run, scores
from dipo_pl.report.seeds import METHOD
from dipo_pl.report.sequences import StageTable, stage_table
from dipo_pl.report.text import interval_text


def results(report: Report) -> str:
    """A row a model; sorted by its buttons."""
    table = report.table
    head = _sortable("Model", "left") + "".join(
        _sortable(each.title, "" if each.headline else "more", each.meaning) for each in table.columns
    )
    body = "".join(
        f'<tr data-kind="{row.kind}"><th scope="row" data-value="{escape(row.name)}">{escape(row.name)}'
        + (f" <small>{row.kind}</small>" if row.kind != row.name else "")
        + "</th>"
        + "".join(
            _figure(
                table.text(index, each),
                row.values.get(each.key),
                table.is_best(index, each),
                not each.headline,
            )
            for each in table.columns
        )
        + "</tr>"
        for index, row in enumerate(table.rows)
    )
    explained = f"Convention {report.convention}. {table.marks} Headings sort."
    return table_html(explained, head, body, "Results", "results")


def seeds(report: Report) -> str:
    """Means with intervals."""
    if not report.seeds:
        return missing(
            "No two runs here are of one config under different seeds: give --seed_everything 1, 2, ... and a --name to "
            "each, and add their folders."
        )
    columns = [
        each
        for each in report.table.short.columns
        if any(each.key in group.figures for group in report.seeds)
    ]
    head = '<th scope="col" class="left">Figure</th>' + "".join(
        f'<th scope="col">{escape(each.name)}<br><span class="quiet">seeds {", ".join(map(str, each.seeds))}</span></th>'
        for each in report.seeds
    )
    body = "".join(
        f'<tr><th scope="row">{escape(column.title)}</th>'
        + "".join(f"<td>{interval_text(group, column.key) or NOT_MEASURED}</td>" for group in report.seeds)
        + "</tr>"
        for column in columns
    )
    caption = (
        f"Mean [low, high]: {METHOD}. Runs whose config differs in nothing but seeds and names. With few seeds the "
        "interval is too narrow: it cannot reach beyond the least and the greatest value."
    )
    return table_html(caption, head, body, "Several seeds")


def stages(report: Report) -> str:
    """A table a sequence, a row a stage."""
    return "".join(
        f"<h3>{escape(each.title)}</h3>"
        + _stages(stage_table(each, report.utility_figure), f"Stages of sequence {number}, {each.title}")
        for number, each in enumerate(report.sequences, start=1)
    )


def _stages(table: StageTable, name: str) -> str:
    stage, request, *figures = table.head
    head = f'<th scope="col" class="left">{stage}, {request}</th>'
    head += "".join(f'<th scope="col">{escape(each)}</th>' for each in figures)
    body = "".join(
        f'<tr><th scope="row" class="request">{number} <small>{escape(asked) or "none"}</small></th>'
        + "".join(f"<td>{each or NOT_MEASURED}</td>" for each in values)
        + "</tr>"
        for number, asked, *values in table.rows
    )
    return table_html(table.caption, head, body, name)


def figures_by_epoch(report: Report) -> str:
    """All evaluations, folded."""
    runs = [each for each in report.runs if len(each.points) > 1]
    if not runs:
        return ""
    keys = {key for run in runs for point in run.points for key in point.metrics}
    columns = [each for each in report.table.columns if each.key in keys and each.headline]
    head = "".join(f'<th scope="col" class="left">{each}</th>' for each in ("Run", "Epoch", "Step"))
    head += "".join(f'<th scope="col">{escape(each.title)}</th>' for each in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(run.name)}</th>{_number(point.epoch)}{_number(point.step)}'
        + "".join(f"<td>{each.text(point.metrics.get(each.key)) or NOT_MEASURED}</td>" for each in columns)
        + "</tr>"
        for run in runs
        for point in run.points
    )
    table = table_html("All evaluations of all runs.", head, body, "Figures by epoch")
    return f"<details><summary>All figures by epoch, as a table</summary>{table}</details>"


def quantization(report: Report) -> str:
    """Each quantised model below the one it was made of."""
    probes = report.probes(Kind.QUANTIZED)
    if not probes:
        return missing(
            "Not measured: make a probe by `dipo-pl quantize` of the unlearned run, and add its folder."
        )
    pairs: dict[str, tuple[Run | None, list[Run]]] = {}
    for probe in probes:
        probed = report.probed_by(probe)
        pairs.setdefault(probed.name if probed else probe.name, (probed, []))[1].append(probe)
    shown = [
        (run, "as trained" if run.kind is not Kind.QUANTIZED else f"int{run.probe.get('bits', '?')}")
        for probed, quantized in pairs.values()
        for run in ([probed] if probed else [])
        + sorted(quantized, key=lambda each: -int(each.probe.get("bits", 0)))
    ]
    columns = [
        each
        for each in report.table.columns
        if each.headline and any(each.key in run.metrics for run, _ in shown)
    ]
    head = "".join(f'<th scope="col" class="left">{each}</th>' for each in ("Model", "Weights"))
    head += "".join(f'<th scope="col">{escape(each.title)}</th>' for each in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(run.name)}</th><td class="left">{escape(weights)}</td>'
        + "".join(f"<td>{each.text(run.metrics.get(each.key)) or NOT_MEASURED}</td>" for each in columns)
        + "</tr>"
        for run, weights in shown
    )
    caption = "The same evaluation with the weights rounded to few bits. What was only hidden may come back."
    return table_html(caption, head, body, "Quantisation")


def meanings(report: Report) -> str:
    """Of each figure of the table."""
    head = "".join(
        f'<th scope="col" class="left">{each}</th>' for each in ("Figure", "Meaning", "Which is better")
    )
    body = "".join(
        f'<tr><th scope="row">{escape(each.title)}</th>'
        f'<td class="left">{escape(each.meaning)}</td><td class="left">{each.better.value}</td></tr>'
        for each in report.table.columns
    )
    lowest = _lowest_p(report.runs)
    return table_html(
        f"Convention {report.convention}.{f' {lowest}' if lowest else ''}", head, body, "Meanings", "facts"
    )


def _lowest_p(runs: Sequence[Run]) -> str:
    import math

    ratios = [scores(each.result.sets.get(FORGET), "log_truth_ratio") for each in runs]
    sizes = {len(each) for each in ratios if each}
    if len(sizes) != 1:
        return ""
    (n,) = sizes
    floor = math.log10(2) - math.log10(math.comb(2 * n, n))
    return f"With {n} forget rows log10 p cannot fall below {floor:.2f}: there the two distributions do not overlap."


def _sortable(title: str, kind: str, meaning: str = "") -> str:
    meant = f' title="{escape(meaning)}"' if meaning else ""
    return f'<th scope="col" class="{kind}"><button type="button"{meant}>{escape(title)}</button></th>'


def _figure(text: str, value: float | None, best: bool, more: bool) -> str:
    kinds = " ".join([*(["best"] if best else []), *(["more"] if more else [])])
    shown = f'<strong>{text}</strong><span class="hidden"> (best)</span>' if best else text or NOT_MEASURED
    return f'<td class="{kinds}" data-value="{"" if value is None else repr(value)}">{shown}</td>'


def _number(value: float | None) -> str:
    return f"<td>{NOT_MEASURED if value is None else f'{value:g}'}</td>"
