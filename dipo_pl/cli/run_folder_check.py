"""Check of what a start finds in its run folder: nothing, a run to resume, a finished run, another run."""

from collections.abc import Iterator, Mapping
from pydoc import locate
from typing import Any

import yaml

from dipo_pl.errors import InputError
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.secrets import redact_values
from dipo_pl.storage.text import load_yaml

# What may not change from one start of a run to the next.
FIXED = (
    "model", "data", "seed_everything", "forget_quality", "verdict",
    *(f"trainer.{key}" for key in (
        "precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
        "overfit_batches", "limit_train_batches", "limit_val_batches",
    )),
)  # fmt: skip
LIMITS = ("max_epochs", "max_steps", "max_time")


def check_run_folder(
    run: RunFolder, command: str, config: Mapping[str, Any], needs_export: bool
) -> str | None:
    """Refuse a folder that holds another run; tell whether there is anything left to do.

    Args:
        run: the folder.
        command: `fit` or `validate`.
        config: the resolved configuration.
        needs_export: the run is not finished while its exported model is missing.

    Returns:
        What to print if the run is finished already; None if it is to be started or resumed.

    Raises:
        InputError: the folder holds a run of another command or configuration, or files that cannot be read.
    """
    manifest = run.read_manifest()
    run.read_metrics()
    if command == "validate" and manifest.get("command") == "fit":
        raise InputError(f"{run.path} holds a training run: give this evaluation another --name")
    is_finished = manifest.get("status") == "finished"
    if run.to_resume_from or is_finished or (command == "validate" and manifest):
        _refuse_another_configuration(run, config)
    if needs_export and not run.hf.is_dir() and run.to_resume_from:
        return None
    if command == "validate" or not is_finished:
        return None
    before = _at(_configuration_before(run), "trainer") or {}
    if any(before.get(each) != config["trainer"][each] for each in LIMITS):
        if not run.to_resume_from:
            raise InputError(
                f"{run.path} is finished and has no checkpoint to resume from: give another --name, or remove that folder"
            )
        return None
    return (
        f"{run.path} is finished ({manifest.get('epochs')} epochs, {manifest.get('steps')} steps): nothing to do. Results "
        "are in metrics.jsonl, the model in hf/. Give another --name to train again, or raise trainer.max_epochs to train "
        "longer (a learning rate that decays starts again from where the longer schedule has it)"
    )


def _refuse_another_configuration(run: RunFolder, config: Mapping[str, Any]) -> None:
    before, now = _configuration_before(run), redact_values(config)
    for path in _class_paths(before):
        if path.startswith("dipo_pl.") and locate(path) is None:
            raise InputError(
                f"{run.path} holds a run of another version of dipo-pl ({path} does not exist in this one): resume it with "
                "that version, give another --name, or remove that folder"
            )
    for each in (before, now):
        # Which requests are known to follow changes with every new one.
        each["data"].get("init_args", {}).pop("requests_to_come", None)
    # Runs of earlier versions have none.
    before.setdefault("verdict", now.get("verdict"))
    if (
        _at(before, "forget_quality.generate_every") == 1
        and _at(now, "forget_quality.generate_every") is None
    ):
        # The default of earlier versions.
        before["forget_quality"]["generate_every"] = None
    size = "data.init_args.global_batch_size"
    if _at(before, size) is not None and _at(before, size) == _at(now, size):
        # The batch size of a device depends on the number of devices.
        before["data"]["init_args"]["batch_size"] = _at(now, "data.init_args.batch_size")
    changes = [change for key in FIXED for change in _changes(_at(before, key), _at(now, key), key)]
    if changes:
        more = f"; and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise InputError(
            f"{run.path} holds a run with another configuration ({'; '.join(changes[:3])}{more}): give another --name, or "
            "remove that folder"
        )


def _configuration_before(run: RunFolder) -> dict[str, Any]:
    try:
        return dict(load_yaml(run.config.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise InputError(
            f"cannot read {run.config} ({' '.join(str(error).split())}): give another --name, or remove {run.path}"
        ) from error


def _class_paths(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if isinstance(path := config.get("class_path"), str):
            yield path
        config = list(config.values())
    for each in config if isinstance(config, list) else ():
        yield from _class_paths(each)


def _at(config: Any, key: str) -> Any:
    for each in key.split("."):
        config = (config or {}).get(each)
    return config


def _changes(before: Any, now: Any, key: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [
            change for each in keys for change in _changes(before.get(each), now.get(each), f"{key}.{each}")
        ]
    return [] if before == now else [f"{key}: {before!r} there, {now!r} here"]
