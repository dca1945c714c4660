"""Records of a study of three seeds, made by hand."""

from pathlib import Path

from dipo_pl.commands.study.results import Results


def curve(*values: float) -> list[dict]:
    return [{"step": 2 * place, "held_back_probability": value} for place, value in enumerate(values)]


def record(kind: str, row: str | None, seed: int, **further: object) -> dict:
    machine = {"processor": "A | B", "cores": 2, "aten_cpu_capability": "AVX2", "gpus": [], "system": "Linux"}
    return {
        "kind": kind, "row": row, "seed": seed, "status": "finished", "command": f"dipo-pl fit {row}", "seconds": 60.0,
        "learning_rate": None, "started": f"2026-01-0{1 + seed % 100}T10:00:00+00:00", "machine": machine, "threads": 1,
        "dipo_pl": "1", "commit": "c0ffee", "versions": {"torch": "2"}, "rows": {"forget": 5}, "data": {"forget": "f" * 64},
    } | further  # fmt: skip


def results_of_two_rows(folder: Path) -> Results:
    runs = {}
    for seed, forget in enumerate((0.1, 0.2, 0.6)):
        metrics = {"forget_probability": forget, "forget_quality_log10_p": -float(seed)}
        before = {"forget_probability": 0.9 + seed / 100}
        runs[f"rows/a/seed-{seed}"] = record(
            "rows", "A", seed, metrics=metrics, before=before, verdict="partly"
        )
        runs[f"rows/a/seed-{seed}-relearn"] = record("relearn", "A", seed, curve=curve(0.2, 0.4 + seed / 10))
        runs[f"retain_only/seed-{seed}"] = record(
            "retain_only", None, seed, metrics={"forget_probability": 0.05}
        )
        runs[f"retain_only/seed-{seed}-relearn"] = record("relearn", None, seed, curve=curve(0.1, 0.1))
        runs[f"target/seed-{seed}"] = record("target", None, seed, metrics={"forget_probability": 0.5})
    runs["rows/b/seed-0"] = record("rows", "B", 0, metrics={"forget_probability": 0.3}, verdict="forgotten")
    runs["rows/b/seed-1"] = record("rows", "B", 1, status="failed", error="no | memory")
    runs["rows/b/seed-2"] = record("rows", "B", 2, status="running")
    runs["rows/old/seed-0"] = record("rows", "old", 0, metrics={"forget_probability": 0.99})
    runs["tuning/a/1/seed-100"] = record("tuning", "A", 100, metrics={}, learning_rate=1e-4, score=-2.0)
    runs["tuning/a/2/seed-100"] = record("tuning", "A", 100, metrics={}, learning_rate=2e-4, score=-1.0)
    rates = {"seeds": [100], "values": ["1e-4", 2e-4], "rule": "NearestToUnseen"}
    rows = [{"name": name, "tune": True} for name in ("A", "B")]
    models = {"target": {"seed": None}, "retain_only": {"seed": None}}
    file = {"seeds": [0, 1, 2], "rows": rows, "learning_rate": rates, "after": {"relearn": {}}, **models}
    study = {"name": "s", "rows": ["A", "B"], "file": file, "options": {"data.path": "/my data"}}
    return Results(folder / "results.json", study, runs)
