"""The model card of an exported model: what was done to it, with what, and the results; never the rows themselves."""

import sys
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from dipo_pl.errors import InputError
from dipo_pl.evaluation.verdict import TITLES
from dipo_pl.storage.files import write_text
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.signature import is_signed
from dipo_pl.storage.text import load_yaml

_METHOD = (
    "forget_loss",
    "retain_loss",
    "retain_weight",
    "constructor",
    "step",
    "optimizer",
    "schedule",
    "warmup",
)


def write_model_card(run: RunFolder) -> None:
    """Write the card of the exported model of a run anew, with what has been measured since, unless the run is signed."""
    step = run.read_manifest().get("exported_step")
    if step is None or not run.hf.is_dir() or not run.config.is_file():
        return
    card = run.hf / "README.md"
    if is_signed(run.path):
        print(f"dipo-pl: {run.path} is signed, so that {card} stays as it was signed", file=sys.stderr)
        return
    write_text(card, model_card(run, step))


def model_card(run: RunFolder, step: int) -> str:
    """Return Markdown with the metadata of the Hugging Face hub, for weights exported at a training step."""
    manifest = run.read_manifest()
    verdict, audit = _audited(run, manifest)
    config = load_yaml(run.config.read_text(encoding="utf-8"))
    model, records = config["model"]["init_args"], {each["step"]: each for each in run.read_metrics()}
    settings = {key: model[key] for key in _METHOD if model.get(key) is not None}
    if adapter := model["policy"]["init_args"].get("adapter"):
        settings["adapter"] = adapter
    data = dict(manifest["data"])
    evaluated = {f"evaluated: {name}": each for name, each in data.pop("evaluation").items()}
    # Markdown needs no escapes of HTML.
    environment = Environment(
        loader=PackageLoader("dipo_pl.report"), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["number"] = lambda value: "" if value is None else f"{value:.4g}"
    return environment.get_template("model_card.md").render(
        metadata=yaml.safe_dump(_metadata(config, verdict), sort_keys=False),
        unlearning="forget_loss" in model,
        verdict=verdict,
        verdict_title=TITLES.get(verdict or "", "no verdict"),
        audit=audit,
        reasons=manifest.get("verdict_reasons") or [],
        base=_base(manifest, model["policy"]),
        policy=manifest["policy"],
        settings=yaml.safe_dump(settings, sort_keys=False),
        step=step,
        manifest=manifest,
        sets=data | evaluated,
        before=records.get(0, {}),
        after=records.get(step),
        relearned=_relearned(run, manifest),
        software={"dipo-pl": manifest["dipo_pl"]} | manifest["versions"],
    )


def _metadata(config: dict[str, Any], verdict: str | None) -> dict[str, Any]:
    model = config["model"]["init_args"]
    adapter_only = (config.get("export") or {}).get("adapter", False)
    found: dict[str, Any] = {"library_name": "peft" if adapter_only else "transformers"}
    found["pipeline_tag"] = "text-generation"
    if path := _hub_id(model["policy"]):
        found |= {"base_model": path, "base_model_relation": "adapter" if adapter_only else "finetune"}
    losses = (model[key]["class_path"].rpartition(".")[2].lower() for key in _METHOD[:2] if model.get(key))
    # What has not forgotten is not to be found as an unlearned model.
    unlearned = ["machine-unlearning"] if verdict == "forgotten" else []
    lora = ["lora"] if model["policy"]["init_args"].get("adapter") is not None else []
    return found | {"tags": [*unlearned, "dipo-pl", *dict.fromkeys(losses), *lora]}


def _hub_id(policy: dict[str, Any]) -> str | None:
    path = policy["init_args"].get("path")
    return None if path is None or Path(path).exists() or path.count("/") > 1 else str(path)


def _base(manifest: dict[str, Any], policy: dict[str, Any]) -> str:
    arguments = policy["init_args"]
    if path := _hub_id(policy):
        places = {"revision": "revision", "gguf_file": "file"}
        stated = (f", {word} `{arguments[key]}`" for key, word in places.items() if arguments.get(key))
        return f"`{path}`{''.join(stated)}"
    if "path" not in arguments:
        return f"{manifest['policy']['source']}, trained from scratch"
    # The card is public: it names the folder, without where it is.
    folder = Path(arguments["path"])
    if (file := Path(manifest["policy"]["source"])).suffix.lower() == ".gguf":
        return f"`{file.name}`, a local GGUF file"
    return f"`{folder.parent.name if folder.name == 'hf' else folder.name}`, a local folder"


def _audited(run: RunFolder, manifest: dict[str, Any]) -> tuple[str | None, Any]:
    """Return the verdict as it is after the finished audit of these weights, and its table without texts; else None."""
    path, verdict = run.path.resolve(), manifest.get("verdict")
    folder = RunFolder(path.with_name(f"{path.name}-audit"))
    if not folder.manifest.is_file():
        return verdict, None
    # These load pandas, which takes a second.
    from dipo_pl.report.audits import audit_table, audited_verdict, is_audit, read_audit
    from dipo_pl.report.verdicts import Verdict

    try:
        audit = read_audit(folder) if is_audit(folder.path) else None
    except InputError:
        # An unfinished or damaged one says nothing.
        return verdict, None
    policy = manifest["policy"]
    if audit is None or audit.weights != (policy.get("weights_at_end") or policy.get("weights_at_start")):
        return verdict, None
    return (verdict if verdict is None else audited_verdict(Verdict(verdict), audit).value), audit_table(
        audit
    )


def _relearned(run: RunFolder, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the evaluations of a finished relearning attack on these weights."""
    path = run.path.resolve()
    attack = RunFolder(path.with_name(f"{path.name}-relearn"))
    record = attack.read_manifest()
    same = (record.get("probe") or {}).get("weights") == manifest["policy"].get("weights_at_end")
    return attack.read_metrics() if same and record.get("status") == "finished" else []
