"""The model card of an exported model: what was done to it, with what, and what that showed; never the rows themselves."""

from pathlib import Path
from typing import Any

import yaml

from dipo_pl.storage.files import write_text
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.text import load_yaml

METHOD = ("forget_loss", "retain_loss", "retain_weight", "constructor", "optimizer", "schedule", "warmup")
HIDDEN = (
    "Whether relearning brings back what was to be forgotten was not probed: take it as hidden rather than removed "
    "(`dipo-pl relearn` probes it)."
)


def write_model_card(run: RunFolder) -> None:
    """Writes the card of the model that a run has exported anew, with what has been measured since."""
    step = run.read_manifest().get("exported_step")
    if step is not None and run.hf.is_dir() and run.config.is_file():
        write_text(run.hf / "README.md", model_card(run, step))


def model_card(run: RunFolder, step: int) -> str:
    """Markdown with the hub's metadata: base model, method, data by fingerprint, figures, versions, limits.

    Args:
        run: a run that has begun, whose manifest and config tell what it does.
        step: at which the exported weights were.
    """
    manifest = run.read_manifest()
    config = load_yaml(run.config.read_text(encoding="utf-8"))
    model = config["model"]["init_args"]
    unlearned = "forget_loss" in model
    made = "Unlearned" if unlearned else "Fine-tuned"
    parts = [
        f"---\n{yaml.safe_dump(_metadata(config, unlearned), sort_keys=False)}---",
        f"# {made} with dipo-pl",
        f"## Base model\n\n{_base(manifest, model['policy'])}",
        f"## Method\n\n{_method(manifest, model, step)}",
        f"## Data\n\n{_data(manifest)}",
        f"## Measured\n\n{_figures(run, manifest, step)}",
    ]
    if unlearned:
        parts.append(f"## Limits\n\n{_limits(run, manifest)}")
    return "\n\n".join([*parts, f"## Made with\n\n{_versions(manifest)}\n"])


def _metadata(config: dict[str, Any], unlearned: bool) -> dict[str, Any]:
    model = config["model"]["init_args"]
    alone = (config.get("export") or {}).get("adapter", False)
    adapter = model["policy"]["init_args"].get("adapter") is not None
    path = _hub_id(model["policy"])
    base = {"base_model": path, "base_model_relation": "adapter" if alone else "finetune"} if path else {}
    losses = [_name(model[key]).lower() for key in ("forget_loss", "retain_loss") if model.get(key)]
    tags = ["machine-unlearning", "dipo-pl", *dict.fromkeys(losses)] if unlearned else ["dipo-pl"]
    return {
        "library_name": "peft" if alone else "transformers",
        "pipeline_tag": "text-generation",
        **base,
        "tags": [*tags, "lora"] if adapter else tags,
    }


def _hub_id(policy: dict[str, Any]) -> str | None:
    path = policy["init_args"].get("path")
    return None if path is None or Path(path).exists() or path.count("/") > 1 else str(path)


def _base(manifest: dict[str, Any], policy: dict[str, Any]) -> str:
    arguments, fingerprint = policy["init_args"], manifest["policy"]
    if path := _hub_id(policy):
        base = f"`{path}`" + (f", revision `{arguments['revision']}`" if arguments.get("revision") else "")
    elif "path" in arguments:
        folder = Path(arguments["path"])
        # Where it lies on somebody's disk is nobody's business.
        base = f"`{folder.parent.name if folder.name == 'hf' else folder.name}`, a local folder"
    else:
        base = f"{fingerprint['source']}, trained from scratch"
    weights = fingerprint["frozen_weights"] or fingerprint["weights_at_start"]
    return f"{base}; {fingerprint['parameters']:,} parameters, SHA-256 of the weights before training `{weights}`."


def _method(manifest: dict[str, Any], model: dict[str, Any], step: int) -> str:
    settings = {key: model[key] for key in METHOD if model.get(key) is not None}
    if adapter := model["policy"]["init_args"].get("adapter"):
        settings["adapter"] = adapter
    block = yaml.safe_dump(settings, sort_keys=False).rstrip()
    return (
        f"```yaml\n{block}\n```\n\nStep {step} of training, {manifest['global_batch']} rows a step, precision "
        f"{manifest['precision']}, seed {manifest['seed']}."
    )


def _data(manifest: dict[str, Any]) -> str:
    data = manifest["data"]
    sets = {name: each for name, each in data.items() if name != "evaluation"}
    sets |= {f"measured: {name}": each for name, each in data["evaluation"].items()}
    lines = [f"| {name} | {each['rows']:,} | `{each['fingerprint']}` |" for name, each in sets.items()]
    return "\n".join(["| rows | number | SHA-256 |", "|---|---|---|", *lines])


def _figures(run: RunFolder, manifest: dict[str, Any], step: int) -> str:
    records = {each["step"]: each for each in run.read_metrics()}
    after, before = records.get(step), records.get(0, {})
    if after is None:
        return "Nothing was measured at this step."
    lines = [
        f"| {name} | {_number(before.get(name))} | {_number(value)} |"
        for name, value in after.items()
        if isinstance(value, float) and name != "epoch"
    ]
    head = f"By the convention `{after['convention']}`, before and after:"
    return "\n".join([head, "", "| | before | after |", "|---|---|---|", *lines])


def _limits(run: RunFolder, manifest: dict[str, Any]) -> str:
    path = run.path.resolve()
    probe = RunFolder(path.with_name(f"{path.name}-relearn"))
    record = probe.read_manifest()
    same = (record.get("probe") or {}).get("weights") == manifest["policy"].get("weights_at_end")
    curve = probe.read_metrics() if same and record.get("status") == "finished" else []
    lines = [
        f"| {each['step']} | {_number(each.get('relearned_probability'))} | {_number(each.get('held_back_probability'))} |"
        for each in curve
    ]
    if not lines:
        probed = HIDDEN
    else:
        head = "Fine-tuned on a share of the forget rows again, the mean probability of their answers and of the others':"
        probed = "\n".join([head, "", "| steps | trained on | held back |", "|---|---|---|", *lines])
    return f"{probed}\n\nThe figures speak for the rows above and the convention named, and for no other wording or attack."


def _versions(manifest: dict[str, Any]) -> str:
    versions = {"dipo-pl": manifest["dipo_pl"]} | manifest["versions"]
    return (
        f"{', '.join(f'{name} {each}' for name, each in versions.items())}; begun {manifest['started'][:10]}."
    )


def _name(part: dict[str, Any]) -> str:
    return str(part["class_path"].rsplit(".", 1)[-1])


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}"
