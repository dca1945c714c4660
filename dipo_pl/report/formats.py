"""Reports as text: for a terminal, for papers in Markdown and LaTeX, and for programs in CSV and JSON."""

import csv
import io
import json
from dataclasses import asdict
from textwrap import fill
from typing import Any

from dipo_pl.report.audits import audit_table
from dipo_pl.report.contents import Report
from dipo_pl.report.intervals import METHOD
from dipo_pl.report.leaks import LeakedRow
from dipo_pl.report.registers import register_table
from dipo_pl.report.run import Kind, Run, printable
from dipo_pl.report.seeds import seed_table
from dipo_pl.report.sequences import RequestSequence, stage_table
from dipo_pl.report.table import Table, markdown_escaped
from dipo_pl.version import __version__

_ABOUT = ("name", "kind", "verdict", "convention", "seed", "epoch", "step", "path")


def tables(report: Report) -> list[Table]:
    """Return the tables that text formats have: results in short, seeds, sequences, registers, audits."""
    results = report.results.headlines
    seeds = [seed_table(report.seeds, results.columns)] if report.seeds else []
    stages = (stage_table(each, report.utility_metric) for each in report.sequences)
    registers = map(register_table, report.registers)
    return [results.table(), *seeds, *stages, *registers, *map(audit_table, report.audits)]


def as_text(report: Report, width: int | None = None) -> str:
    """Return the tables for a terminal of `width` characters a line, best values with an asterisk."""
    results, *others = (each.to_text(width) for each in tables(report))
    remarks = (
        fill(f"- {printable(each)}", width or 120, subsequent_indent="  ") for each in _remarks(report)
    )
    notes = "".join(f"{each}\n" for each in remarks)
    head = f"Convention {report.convention}\n"
    return "\n".join([head, results, *([notes] if notes else []), *others])


def as_markdown(report: Report) -> str:
    """Return the tables in Markdown, best values in bold."""
    results, *others = (each.to_markdown() for each in tables(report))
    notes = "".join(f"- {markdown_escaped(each)}\n" for each in _remarks(report))
    head = f"Convention {markdown_escaped(report.convention)}.\n"
    return "\n".join([head, results, *([notes] if notes else []), *others])


def as_latex(report: Report) -> str:
    """Return a tabular for each table, best values in bold; convention, captions and notes are comments."""
    comments = [f"Convention {report.convention}", *_remarks(report)]
    head = "".join(f"% {printable(each)}\n" for each in comments)
    return "\n".join([head, *(each.to_latex() for each in tables(report))])


def as_csv(report: Report) -> str:
    """Return a line for each model: what it is, its stage of a sequence, and every metric in full precision."""
    stages = {
        each.run.name: {"sequence": one.name, "mode": one.mode, "stage": each.number, "request": each.request}
        for one in report.sequences
        for each in one.stages
    }
    known = [*_ABOUT, "sequence", "mode", "stage", "request"]
    out = io.StringIO()
    writer = csv.DictWriter(
        out, [*known, *(each.key for each in report.results.columns)], lineterminator="\n"
    )
    writer.writeheader()
    for row in report.results.rows:
        run = row.run
        of = run.evaluations[0] if row.kind is Kind.BEFORE else run.chosen
        about = (
            row.name,
            row.kind,
            row.verdict.value if row.verdict else None,
            run.result.convention,
            run.manifest.get("seed"),
            of.epoch,
            of.step,
            run.path,
        )
        # A metric may be called like one of the columns before it.
        writer.writerow(row.metrics | dict(zip(_ABOUT, about, strict=True)) | stages.get(row.name, {}))
    return out.getvalue()


def as_json(report: Report) -> str:
    """Return all of the report: runs with fingerprints and evaluations, results, seeds, sequences, what was left out."""
    results = report.results
    best: dict[str, list[str]] = {column.key: [] for column in results.columns}
    for index, key in sorted(results.best):
        best[key].append(results.rows[index].name)
    content = {
        "dipo_pl": __version__,
        "created": report.created,
        "convention": report.runs[0].result.convention,
        "rows": [
            {
                "name": each.name,
                "kind": each.kind,
                "verdict": each.verdict.value if each.verdict else None,
                "verdict_reasons": [asdict(reason) for reason in each.verdict.reasons]
                if each.verdict
                else [],
                "run": each.run.name,
                "metrics": each.metrics,
            }
            for each in results.rows
        ],
        "best": best,
        "runs": list(map(_run, report.runs)),
        "seeds": [
            {
                "name": group.name,
                "method": METHOD,
                "runs": [each.name for each in group.runs],
                "seeds": group.seeds,
                "metrics": {key: each._asdict() for key, each in group.metrics.items()},
            }
            for group in report.seeds
        ],
        "sequences": [_sequence(each, report.utility_metric) for each in report.sequences],
        "texts": report.texts,
        "leaks": [
            {"run": each.run, "step": each.step, "rows": list(map(_leak, each.rows))} for each in report.leaks
        ],
        "registers": list(map(asdict, report.registers)),
        "audits": list(map(asdict, report.audits)),
        "notes": report.notes,
        "left_out": report.left_out,
    }
    return json.dumps(content, indent=1, default=str) + "\n"


def _remarks(report: Report) -> list[str]:
    """Return the verdicts with what speaks against them, and the notes."""
    verdicts = [f"{row.name}: {row.verdict.sentence}" for row in report.results.rows if row.verdict]
    return [*verdicts, *report.notes]


def _leak(row: LeakedRow) -> dict[str, Any]:
    numbers = {
        "set": row.set_name,
        "row": row.row,
        "leaked_words": row.leaked,
        "telling_words": row.telling,
        "longest_shared_words": row.longest,
        "probability": row.probability,
        "retain_only_probability": row.expected,
        "rouge": row.rouge,
    }
    return numbers | ({"shared": [each.text for each in row.answer if each.shared]} if row.answer else {})


def _run(run: Run) -> dict[str, Any]:
    sets = run.result.sets.items()
    return {
        "name": run.name,
        "kind": run.kind,
        "path": str(run.path),
        "config": run.recipe if run.config else None,
        "manifest": run.manifest,
        "sets": {name: {"rows": len(each.rows), "fingerprint": each.fingerprint} for name, each in sets},
        "evaluations": [
            {"epoch": each.epoch, "step": each.step, "metrics": each.metrics} for each in run.evaluations
        ],
    }


def _sequence(sequence: RequestSequence, utility: str | None) -> dict[str, Any]:
    return {
        "name": sequence.name,
        "mode": sequence.mode,
        "requests": sequence.requests,
        "utility_metric": utility,
        "request_metric": sequence.request_metric,
        "stages": [
            {
                "stage": each.number,
                "request": each.request or None,
                "run": each.run.name,
                "metrics": each.metrics,
                "retain_only": each.retain_only,
            }
            for each in sequence.stages
        ],
        "by_request": sequence.by_request(),
    }
