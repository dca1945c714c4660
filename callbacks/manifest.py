"""The manifest: what made a result, so that it can be made again and compared fairly."""

import json
import platform
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from lightning import Callback, LightningModule, Trainer

from dipo_pl.callbacks.weight_change import trained_weights
from dipo_pl.commands.probes.probe import Probe
from dipo_pl.commands.sequence.stage_record import StageRecord
from dipo_pl.errors import InputError, WriteError
from dipo_pl.rows import Row
from dipo_pl.signals import Interrupted
from dipo_pl.storage.fingerprints import rows_fingerprint, texts_fingerprint, tokenizer_fingerprint
from dipo_pl.storage.run_folder import RunFolder, write_text
from dipo_pl.storage.secrets import redact, redact_arguments
from dipo_pl.version import __version__

PACKAGES = ("torch", "lightning", "transformers", "datasets", "torchmetrics", "jsonargparse", "tokenizers")


class Manifest(Callback):
    """Writes manifest.json when a run starts, and how it ended when it ends.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self.arguments = redact_arguments(arguments)
        self.written = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        run = RunFolder.of(trainer)
        manifest = run.read_manifest()
        before = manifest.get("data")
        if stage == "fit" and run.to_resume_from:
            if before is None:
                raise InputError(
                    f"{run.manifest} does not say which rows the checkpoints there were trained on: give another --name, or "
                    f"remove {run.path}"
                )
            if manifest.get("global_batch") != _global_batch(trainer):
                raise InputError(
                    f"{run.path} was trained with {manifest.get('global_batch')} rows a step, and here {trainer.world_size} "
                    f"device(s) make it {_global_batch(trainer)}: set data.global_batch_size, which keeps it on any number "
                    "of devices, or give another --name"
                )
            for name, now in _data(trainer).items():
                if name != "evaluation" and before.get(name) != now:
                    raise InputError(
                        f"the {name} rows are not those that {run.path} was trained on ({now['rows']} rows, there "
                        f"{before.get(name, {}).get('rows')}): give another --name, or remove that folder"
                    )
            tokenizer = _tokenizer(trainer)
            if manifest.get("tokenizer", tokenizer) != tokenizer:
                raise InputError(
                    f"the tokenizer is not that which {run.path} was trained with ({tokenizer}, there "
                    f"{manifest['tokenizer']}): give another --name, or remove that folder"
                )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate" and not self._fitted(trainer):
            self._start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Only now has a resumed run its step again.
        if trainer.ckpt_path is not None and trainer.is_global_zero:
            run = RunFolder.of(trainer)
            resumed = [*run.read_manifest()["resumed_at_steps"], trainer.global_step]
            run.add_to_manifest(resumed_at_steps=resumed)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(trainer, "trained")

    def finish(self, trainer: Trainer) -> None:
        """Says that training, measurement and export are done: there is nothing left to resume."""
        self._end(trainer, "finished")
        if trainer.is_global_zero:
            RunFolder.of(trainer).error_log.unlink(missing_ok=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate" and not self._fitted(trainer):
            self.finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Interrupted) and self.written:
            self._end(trainer, str(exception))

    def fail(self, trainer: Trainer, cause: str) -> None:
        """Says why the run has failed; for the process to call that knows the first cause."""
        with suppress(OSError, WriteError):
            self._write_end(trainer, f"failed: {cause}")

    @staticmethod
    def _fitted(trainer: Trainer) -> bool:
        """The measurement after a fit belongs to that run."""
        return RunFolder.of(trainer).read_manifest().get("command") == "fit"

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        run = RunFolder.of(trainer)
        earlier = trainer.strategy.broadcast(run.read_manifest())
        resumed = trainer.state.fn == "fit" and trainer.ckpt_path is not None and bool(earlier)
        weights_at_start = (
            earlier["policy"]["weights_at_start"] if resumed else trained_weights(module, trainer)
        )
        if not trainer.is_global_zero:
            # The first process writes it; from here on no other one takes back what the run leaves behind either.
            self.written = True
            return
        language_model = module.language_model
        record = {
            "status": "running",
            "command": trainer.state.fn.value if trainer.state.fn else None,
            "started": earlier.get("started", _now()) if resumed else _now(),
            "resumed_at_steps": earlier["resumed_at_steps"] if resumed else [],
            "dipo_pl": __version__,
            "versions": {"python": platform.python_version()}
            | {name: metadata.version(name) for name in PACKAGES}
            | ({} if module.policy.adapter is None else {"peft": metadata.version("peft")}),
            "platform": platform.platform(),
            "arguments": self.arguments,
            "seed": data.seed,
            "device": str(pl_module.device),
            "world_size": trainer.world_size,
            "global_batch": _global_batch(trainer),
            "tokenizer": _tokenizer(trainer),
            "precision": str(trainer.precision),
            "gradient_clip": trainer.gradient_clip_val,
            "attention": language_model.config._attn_implementation,
            "max_epochs": trainer.max_epochs,
            "max_steps": trainer.max_steps,
            "policy": {
                "source": redact(module.policy.source),
                "class": type(language_model).__name__,
                "dtype": str(language_model.dtype),
                "parameters": module.size,
                "trained_parameters": module.trained_size,
                "frozen_weights": module.frozen_weights,
                "weights_at_start": weights_at_start,
            },
            "data": _data(trainer),
        }
        for each in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(each, Probe):
                record["probe"] = each.record(trainer, pl_module)
            if isinstance(each, StageRecord):
                record["sequence"] = each.record
        write_text(run.manifest, json.dumps(record, indent=2) + "\n")
        self.written = True

    def _end(self, trainer: Trainer, status: str) -> None:
        if trainer.is_global_zero:
            self._write_end(trainer, status)

    @staticmethod
    def _write_end(trainer: Trainer, status: str) -> None:
        RunFolder.of(trainer).add_to_manifest(
            status=status, ended=_now(), epochs=trainer.current_epoch, steps=trainer.global_step
        )


def _global_batch(trainer: Trainer) -> int:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    rows: int = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
    return rows


def _tokenizer(trainer: Trainer) -> str:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return tokenizer_fingerprint(data.tokenizer)


def _data(trainer: Trainer) -> dict[str, Any]:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return {
        "forget": _rows(data.row_sets.forget),
        "retain": _rows(data.row_sets.retain),
        **{
            name: {"rows": len(answers), "fingerprint": texts_fingerprint(answers)}
            for name, answers in data.companions.items()
        },
        "evaluation": {each.name: _rows(each.rows) for each in data.evaluation_sets},
    }


def _rows(rows: Sequence[Row]) -> dict[str, Any]:
    return {"rows": len(rows), "fingerprint": rows_fingerprint(rows)}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
