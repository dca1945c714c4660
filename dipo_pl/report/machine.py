"""Reports for programs: CSV and JSON, all figures in full precision."""

import csv
import io
import json

from dipo_pl.report.contents import Report
from dipo_pl.report.seeds import METHOD
from dipo_pl.version import __version__


def as_csv(report: Report) -> str:
    """A line a model: name, kind, convention, seed, epoch and step, path, stage of a sequence, and every figure."""
    out = io.StringIO()
    keys = [each.key for each in report.table.columns]
    writer = csv.writer(out, lineterminator="\n")
    stage = ["sequence", "mode", "stage", "request"]
    writer.writerow(["name", "kind", "convention", "seed", "epoch", "step", "path", *stage, *keys])
    stages = {
        each.run.name: [sequence.name, sequence.mode, each.number, each.request]
        for sequence in report.sequences
        for each in sequence.stages
    }
    for row in report.table.rows:
        # A row of the model as it was is not the run's last point.
        point = row.run.chosen if row.kind is row.run.kind else row.run.points[0]
        writer.writerow(
            [
                *(row.name, row.kind, row.run.result.convention, row.run.manifest.get("seed")),
                *(point.epoch, point.step, row.run.path),
                *stages.get(row.name, [None] * len(stage)),
                *(row.values.get(key) for key in keys),
            ]
        )
    return out.getvalue()


def as_json(report: Report) -> str:
    """Runs with their fingerprints and all evaluations, the table, the best, seeds, sequences, what was left out."""
    rows = report.table.rows
    content = {
        "dipo_pl": __version__,
        "made": report.made,
        "convention": report.runs[0].result.convention,
        "rows": [
            {"name": row.name, "kind": row.kind, "run": row.run.name, "figures": row.values} for row in rows
        ],
        "best": {
            column.key: [row.name for index, row in enumerate(rows) if report.table.is_best(index, column)]
            for column in report.table.columns
        },
        "runs": [
            {
                "name": run.name,
                "kind": run.kind,
                "path": str(run.path),
                "config": run.recipe if run.config else None,
                "manifest": run.manifest,
                "sets": {
                    name: {"rows": len(each.rows), "fingerprint": each.fingerprint}
                    for name, each in run.result.sets.items()
                },
                "evaluations": [
                    {"epoch": each.epoch, "step": each.step, "figures": each.metrics} for each in run.points
                ],
            }
            for run in report.runs
        ],
        "seeds": [
            {
                "name": group.name,
                "method": METHOD,
                "runs": [each.name for each in group.runs],
                "seeds": group.seeds,
                "figures": {key: each._asdict() for key, each in group.figures.items()},
            }
            for group in report.seeds
        ],
        "sequences": [
            {
                "name": sequence.name,
                "mode": sequence.mode,
                "requests": sequence.requests,
                "utility": report.utility_figure,
                "request_figure": sequence.request_figure,
                "stages": [
                    {
                        "stage": each.number,
                        "request": each.request or None,
                        "run": each.run.name,
                        "figures": each.figures,
                        "retain_only": each.retain_only,
                    }
                    for each in sequence.stages
                ],
                "by_request": sequence.matrix(),
            }
            for sequence in report.sequences
        ],
        "notes": report.notes,
        "left_out": report.left_out,
    }
    return json.dumps(content, indent=1, default=str) + "\n"
