"""Entries of the register of a sequence: who asked for what when, and what came of it."""

from typing import Any

from dipo_pl.commands.sequence.requests_file import ABOUT
from dipo_pl.commands.sequence.stages import Stage
from dipo_pl.storage.register import add_to_register, read_register
from dipo_pl.storage.run_folder import RunFolder, exported_weights


def register(stage: Stage) -> None:
    """Add what came of a finished stage to the register of its sequence, once, and again after an audit.

    Raises:
        InputError: the register is damaged.
        WriteError: it cannot be written.
    """
    manifest = stage.run.read_manifest()
    policy = manifest.get("policy") or {}
    name = stage.requests[-1]
    about = stage.sequence.register.get(name, {})
    entry: dict[str, Any] = {
        "stage": stage.number,
        "request": name,
        **{key: str(about[key]) for key in ABOUT if about.get(key) is not None},
        "started": manifest.get("started"),
        "finished": manifest.get("ended"),
        "model_before": policy.get("weights_at_start"),
        "model_after": exported_weights(manifest),
        "verdict": manifest.get("verdict"),
    }
    path = stage.run.path
    audit = RunFolder(path.with_name(f"{path.name}-audit")).read_manifest()
    of_these = (audit.get("probe") or {}).get("weights") == policy.get("weights_at_end")
    if audit.get("status") == "finished" and of_these:
        entry["audit"] = audit["verdict"]["status"]
        entry["attacks"] = {attack: each["status"] for attack, each in audit["attacks"].items()}
    else:
        entry |= _known_audit(stage, entry["model_after"])
    add_to_register(stage.folder, entry)


def _known_audit(stage: Stage, model: str | None) -> dict[str, Any]:
    """Return what the register says last of an audit of the stage's model: its folder may be gone, or be made again."""
    for each in reversed(read_register(stage.folder)):
        if "audit" in each and (each["stage"], each.get("model_after")) == (stage.number, model):
            return {key: each[key] for key in ("audit", "attacks") if key in each}
    return {}
