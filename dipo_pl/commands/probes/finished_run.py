"""A finished run that is to be probed: its model, data and hardware as options of a new run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from dipo_pl.cli.command_parser import as_options
from dipo_pl.errors import InputError
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.text import load_yaml

HARDWARE = ("accelerator", "strategy", "devices", "num_nodes", "precision")


@dataclass(frozen=True)
class FinishedRun:
    """A finished run whose model can be loaded.

    Attributes:
        path: its folder, as it was given.
        manifest: its manifest.
        config: its config.
        policy: init_args of a `Pretrained` that loads its model: the exported one, or, for a run that only evaluated a
            model, that model.
    """

    path: Path
    manifest: dict[str, Any]
    config: dict[str, Any]
    policy: dict[str, Any]

    @classmethod
    def read(cls, given: str) -> Self:
        """Return the run of a folder.

        Raises:
            InputError: the folder holds no run, or one that is unfinished, is itself a probe, or has no complete model.
        """
        run = RunFolder(Path(given))
        manifest = run.read_manifest()
        if not manifest:
            raise InputError(
                f"{given} is not a run folder (no readable manifest.json): give one that `dipo-pl fit` has written, such "
                "as runs/tofu"
            )
        if (status := manifest.get("status")) != "finished":
            raise InputError(f"{given} is not finished (status: {status}): finish that run first")
        if "probe" in manifest:
            raise InputError(f"{given} is itself a probe: probe {manifest['probe'].get('of')} instead")
        try:
            config = load_yaml(run.config.read_text(encoding="utf-8"))
            data, model = config["data"], config["model"]
            data["class_path"], data["init_args"], model["init_args"]["policy"]["class_path"]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            raise InputError(
                f"cannot read the configuration of the run in {run.config} ({' '.join(str(error).split())[:200]}): "
                "give a run whose folder was not changed"
            ) from error
        return cls(Path(given), manifest, config, _policy(run, manifest, model["init_args"]["policy"]))

    @property
    def weights(self) -> str | None:
        """Fingerprint of the run's last weights."""
        policy = self.manifest.get("policy") or {}
        return policy.get("weights_at_end") or policy.get("weights_at_start")

    def folder(self, name: str) -> Path:
        """Return the folder of a probe, beside the run's and with `name` after the run's name.

        Raises:
            InputError: the folder holds a run that is no probe, or a probe of other weights: the run was trained again
                since.
        """
        path = self.path if self.path.name not in ("", "..") else self.path.resolve()
        folder = path.with_name(f"{path.name}-{name}")
        manifest = RunFolder(folder).read_manifest()
        probe = manifest.get("probe")
        if manifest and probe is None:
            raise InputError(f"{folder} is a run of its own, and would be overwritten: rename it")
        if probe is not None and probe.get("weights") != self.weights:
            stale = f"{folder} is a probe of {self.path} before that run was trained again"
            raise InputError(f"{stale}: remove {folder}")
        return folder

    def probe(
        self,
        command: str,
        folder: Path,
        callback: Mapping[str, Any],
        settings: Mapping[str, Any],
        further: Sequence[str],
        debug: bool,
    ) -> int:
        """Run a probe with this run's data and hardware; return the exit code.

        Args:
            command: fit or validate.
            folder: the probe's run folder.
            callback: `class_path` and `init_args` of the Probe, without `of` and `weights`.
            settings: other options by key.
            further: options from the command line, which come last.
            debug: whether to print the traceback of an error.
        """
        # Lightning takes seconds to import.
        from lightning.pytorch.utilities.rank_zero import rank_zero_only

        from dipo_pl.cli.run import run

        trainer = self.config.get("trainer") or {}
        arguments = {"of": str(self.path), "weights": self.weights, **callback["init_args"]}
        options = {
            "name": folder.name,
            "output_dir": str(folder.parent),
            "data": self.config["data"],
            **{f"trainer.{key}": trainer.get(key) for key in HARDWARE},
            "trainer.callbacks": [{"class_path": callback["class_path"], "init_args": arguments}],
            **settings,
        }
        rank_zero_only(print)(f"\n{self.path} -> {folder}", flush=True)
        return run([command, *as_options(options), *further], debug)


def _policy(run: RunFolder, manifest: Mapping[str, Any], policy: Mapping[str, Any]) -> dict[str, Any]:
    own = policy.get("init_args") or {}
    kept = {key: own[key] for key in ("attention", "trust_remote_code") if own.get(key)}
    if manifest.get("command") == "validate" and policy["class_path"].split(".")[-1] == "Pretrained":
        if own.get("quantization") is not None:
            raise InputError(f"{run.path} evaluated a quantized model: probe a run of the unquantized model")
        return kept | {
            key: own[key] for key in ("path", "revision", "dtype", "tokenizer", "gguf_file") if own.get(key)
        }
    if (run.hf / "adapter_config.json").is_file():
        raise InputError(
            f"{run.hf} holds an adapter, not a complete model: train that run again with export.adapter false"
        )
    if not (run.hf / "config.json").is_file():
        raise InputError(
            f"{run.path} has no exported model (no config.json in {run.hf}): train it again with export.enabled true"
        )
    return kept | {"path": str(run.hf)}
