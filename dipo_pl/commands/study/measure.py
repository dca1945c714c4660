"""Records of finished runs, read from their folders."""

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from dipo_pl.commands.study.plan import Job, Kind
from dipo_pl.commands.study.results import Record
from dipo_pl.errors import InputError
from dipo_pl.report.audits import read_audit
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.text import load_yaml

# Keys that the curve of a relearning attack shows.
CURVE = (
    "step",
    "forget_probability",
    "relearned_probability",
    "held_back_probability",
    "forget_rouge_l_recall",
)
HELD_BACK = "held_back_probability"
# Keys of every evaluation of an unlearning run that its record keeps.
TRAJECTORY = (
    "forget_probability", "forget_quality_log10_p", "model_utility", "retain_probability",
    "forget_rouge_l_recall",
)  # fmt: skip


def measured(job: Job, study: Path) -> dict[str, Any]:
    """Return what a finished run's folder says for the report.

    Args:
        job: the run.
        study: folder of the study's runs.

    Raises:
        InputError: the run is not finished, has no evaluation, or a file cannot be read.
    """
    runs = job.folders(study)
    for each in runs:
        if (status := each.read_manifest().get("status")) != "finished":
            raise InputError(f"{each.path} is not finished (status: {status}): see its log")
        if not each.read_metrics():
            raise InputError(
                f"{each.path} has no evaluation: set trainer.check_val_every_n_epoch so that it has one"
            )
    run, manifest = runs[0], runs[0].read_manifest()
    made_by = {key: manifest.get(key) for key in ("versions", "platform", "device")}
    if job.kind is Kind.QUANTIZE:
        return made_by | {
            "quantized": {each.path.name.rpartition("-")[2]: _numbers(each.final_metrics) for each in runs},
            "data": _fingerprints(manifest["data"]),
        }
    if job.kind is Kind.AUDIT:
        audit = read_audit(run)
        attacks = {each.name: each.status for each in audit.attacks}
        judged = {"status": audit.status, "reason": audit.reason, "attacks": attacks}
        return made_by | {"audit": judged, "metrics": _numbers(audit.metrics)}
    found: dict[str, Any] = made_by | {
        "steps": manifest.get("steps"),
        "epochs": manifest.get("epochs"),
        "resumed_at_steps": manifest.get("resumed_at_steps"),
        "rows": {name: each["rows"] for name, each in manifest["data"]["evaluation"].items()},
        "data": _fingerprints(manifest["data"]),
        "weights": {key: manifest["policy"].get(key) for key in ("weights_at_start", "weights_at_end")},
        "parameters": manifest["policy"]["parameters"],
        **_pace(run),
    }
    if job.kind is Kind.RELEARN:
        return found | {
            "curve": [{key: each[key] for key in CURVE if key in each} for each in run.read_metrics()]
        }
    first = run.read_metrics()[0]
    found |= {
        "step": run.final_step,
        "metrics": _numbers(run.final_metrics),
        "verdict": manifest.get("verdict"),
    }
    if first["step"] == 0:
        found["before"] = _numbers(first)
    if job.kind is Kind.ROW:
        found["trajectory"] = [
            {"step": each["step"]}
            | {key: value for key, value in _numbers(each).items() if key in TRAJECTORY}
            for each in run.read_metrics()
        ]
    if job.kind is Kind.TUNING:
        found["score"] = _score(job, run)
    return found


def diverged(job: Job, study: Path) -> dict[str, Any] | None:
    """Return the record of a tuning run that ended with numbers that are not finite; None if it is none."""
    # Loads torch, which takes seconds.
    from dipo_pl.commands.tuning import DIVERGED, has_diverged

    if job.kind is not Kind.TUNING or not has_diverged(job.folders(study)[0]):
        return None
    return {"score": DIVERGED, "diverged": True}


def other_rows(found: Mapping[str, Any], records: Mapping[str, Record]) -> str | None:
    """Return why a run's rows are not those of the same run with other seeds; None if they are.

    Args:
        found: what its folder says.
        records: those of the same run, by key. Rows of no data module depend on the seed.
    """
    for key, each in records.items():
        there = each.get("data") or {}
        for name, here in (found.get("data") or {}).items():
            if here != there.get(name, here):
                return (
                    f"its {name} rows (fingerprint {here[:12]}) are not those of {key} ({there[name][:12]}): restore them, "
                    "or give another --name"
                )
    return None


def relearning_area(curve: list[Mapping[str, Any]], retain_only: list[Mapping[str, Any]]) -> float | None:
    """Return the area between two relearning curves of P(held back), a mean difference over the steps.

        1 / (t_n - t_0) integral of P_unlearned(t) - P_retain_only(t) over t, by trapezoids

    Args:
        curve: evaluations of the unlearned model.
        retain_only: those of the retain-only model of the same seed, at the same steps.

    Returns:
        None if the two have fewer than two steps in common, or held nothing back.
    """
    theirs = {each["step"]: each[HELD_BACK] for each in retain_only if HELD_BACK in each}
    both = [(each["step"], each[HELD_BACK] - theirs[each["step"]]) for each in curve
            if HELD_BACK in each and each["step"] in theirs]  # fmt: skip
    if len(both) < 2:
        return None
    import numpy as np

    steps, differences = zip(*both, strict=True)
    return float(np.trapezoid(differences, steps) / (steps[-1] - steps[0]))


def _fingerprints(data: Mapping[str, Any]) -> dict[str, str]:
    """Return the fingerprints of the rows of a run that do not depend on its seed."""
    trained = {name: data[name]["fingerprint"] for name in ("forget", "retain") if name in data}
    return trained | {f"{name} evaluation": each["fingerprint"] for name, each in data["evaluation"].items()}


def _score(job: Job, run: RunFolder) -> float:
    """Return the rule's score of the evaluation that counts for a run, which the table would show."""
    # These load torch, which takes seconds.
    from dipo_pl.cli.run import selection_rule
    from dipo_pl.commands.tuning import scored

    config = load_yaml(run.config.read_text(encoding="utf-8"))
    for score, each in scored(selection_rule(job.rule), run, config):
        if each["step"] == run.final_step:
            return score
    raise InputError(
        f"the last evaluation of {run.path} lacks a metric that learning_rate.rule needs: generate answers to all rows then"
    )


def _pace(run: RunFolder) -> dict[str, float]:
    """Return the median time between two steps, in seconds, and the most memory, in MiB, as TensorBoard's file has them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Events that an interrupted run logged beyond its checkpoint are overwritten below by those logged again.
    events = EventAccumulator(str(run.path), purge_orphaned_data=False).Reload()
    if "train/memory_mib" not in events.Tags()["scalars"]:
        return {}
    logged = events.Scalars("train/memory_mib")
    found = {"memory_mib": max(each.value for each in logged)}
    times = {each.step: each.wall_time for each in logged}
    gaps = [times[step + 1] - time for step, time in times.items() if step + 1 in times]
    return found | ({"step_seconds": median(gaps)} if gaps else {})


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in record.items()
        if key not in ("epoch", "step") and type(value) in (int, float) and math.isfinite(value)
    }
