"""A finished run as a probe needs it: its model, its data and the machine it ran on, as arguments."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from dipo_pl.errors import InputError
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.text import load_yaml

HARDWARE = ("accelerator", "strategy", "devices", "num_nodes", "precision")


@dataclass(frozen=True)
class FinishedRun:
    """A run that is done and whose model can be had.

    Attributes:
        path: of its folder, as it was given.
        manifest, config: what it has written.
        policy: init_args of the `Pretrained` that gives its model: the export, or of a run that only measured a
            model, that model.
    """

    path: Path
    manifest: dict[str, Any]
    config: dict[str, Any]
    policy: dict[str, Any]

    @classmethod
    def read(cls, given: str) -> Self:
        """
        Raises:
            InputError: there is no run, it is not finished, is itself a probe, or left no whole model.
        """
        run = RunFolder(Path(given))
        manifest = run.read_manifest()
        if not manifest:
            raise InputError(
                f"{given} is not the folder of a run (it has no readable manifest.json): give one that `dipo-pl fit` "
                "has made, such as runs/tofu"
            )
        if manifest.get("status") != "finished":
            raise InputError(
                f"{given} is not finished (status: {manifest.get('status')}): let that run finish first"
            )
        if "probe" in manifest:
            raise InputError(
                f"{given} is a probe itself: probe {manifest['probe'].get('of')}, which it is of"
            )
        try:
            config = load_yaml(run.config.read_text(encoding="utf-8"))
            data, model = config["data"], config["model"]
            data["class_path"], data["init_args"], model["init_args"]["policy"]["class_path"]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            raise InputError(
                f"cannot read the configuration of the run in {run.config} ({' '.join(str(error).split())[:200]}): "
                "give a run whose folder is as it was written"
            ) from error
        return cls(Path(given), manifest, config, _policy(run, manifest, model["init_args"]["policy"]))

    @property
    def figures(self) -> dict[str, Any]:
        """Of the evaluation of the model that the run exported, else of the last one."""
        return RunFolder(self.path).final_metrics

    @property
    def weights(self) -> str | None:
        """Fingerprint of the last weights that its manifest knows."""
        policy = self.manifest.get("policy") or {}
        return policy.get("weights_at_end") or policy.get("weights_at_start")

    def refuse_stale(self, folder: Path) -> None:
        """
        Raises:
            InputError: the folder holds a probe of other weights, this run's before it was made anew.
        """
        probe = RunFolder(folder).read_manifest().get("probe")
        if probe is not None and probe.get("weights") != self.weights:
            raise InputError(
                f"{folder} is a probe of {self.path} as it was before that was trained anew: remove that folder"
            )

    def folder(self, name: str) -> Path:
        """Of a probe: beside the run, `name` after its own."""
        path = self.path if self.path.name not in ("", "..") else self.path.resolve()
        return path.with_name(f"{path.name}-{name}")

    def settings(self, probe: str, folder: Path, **options: Any) -> dict[str, Any]:
        """Keys of a run in `folder` with this one's data and hardware, that is a probe of it by that class."""
        arguments = {"of": str(self.path), "weights": self.weights, **options}
        callback = {"class_path": f"dipo_pl.commands.probes.probe.{probe}", "init_args": arguments}
        trainer = self.config.get("trainer") or {}
        return {
            "name": folder.name,
            "output_dir": str(folder.parent),
            "data": self.config["data"],
            **{f"trainer.{key}": trainer.get(key) for key in HARDWARE},
            "trainer.callbacks": [callback],
        }


def _policy(run: RunFolder, manifest: dict[str, Any], policy: dict[str, Any]) -> dict[str, Any]:
    """init_args of a Pretrained."""
    own = policy.get("init_args") or {}
    kept = {key: own[key] for key in ("attention", "trust_remote_code") if own.get(key)}
    if manifest.get("command") == "validate" and policy["class_path"].split(".")[-1] == "Pretrained":
        if own.get("quantization") is not None:
            raise InputError(f"{run.path} measured a quantised model: probe a run of the model as it was")
        return kept | {key: own[key] for key in ("path", "revision", "dtype", "tokenizer") if own.get(key)}
    if (run.hf / "adapter_config.json").is_file():
        raise InputError(
            f"{run.hf} holds an adapter, not a whole model: train that run again with export.adapter false"
        )
    if not (run.hf / "config.json").is_file():
        raise InputError(
            f"{run.path} has no exported model ({run.hf} has no config.json): train it again with export.enabled true"
        )
    return kept | {"path": str(run.hf)}
