"""Callback that records what made a result, so that it can be reproduced and compared."""

import json
import platform
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, ClassVar

from lightning import Callback, LightningModule, Trainer

from dipo_pl.callbacks.weight_change import trained_weights
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.errors import InputError, WriteError
from dipo_pl.private_names import attention_implementation
from dipo_pl.rows import Row
from dipo_pl.signals import Interrupted
from dipo_pl.storage.files import write_text
from dipo_pl.storage.fingerprints import rows_fingerprint, texts_fingerprint, tokenizer_fingerprint
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.secrets import redact, redact_arguments
from dipo_pl.storage.versions import installed_versions
from dipo_pl.version import __version__


class ManifestEntry(Callback, ABC):
    """Base class of callbacks that add an entry to the manifest.

    Attributes:
        entry: the key of the entry.
    """

    entry: ClassVar[str]

    @abstractmethod
    def record(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the content of the entry; where it is empty there is none."""


class Manifest(Callback):
    """Callback that writes manifest.json at the start of a run and adds its outcome at the end.

    Args:
        arguments: the arguments of the command line.
    """

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self.arguments = redact_arguments(arguments)
        self.written = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that a run to resume was trained with the same rows, token ids, tokenizer and global batch size.

        Raises:
            InputError: it was not, or its manifest does not say so.
        """
        run = RunFolder(trainer.default_root_dir)
        if stage != "fit" or not run.to_resume_from:
            return
        manifest = run.read_manifest()
        elsewhere = f"give another --name, or remove {run.path}"
        if (rows := manifest.get("data")) is None:
            raise InputError(
                f"{run.manifest} does not record which rows its checkpoints were trained on: {elsewhere}"
            )
        if (before := manifest.get("global_batch")) != (now := _global_batch(trainer)):
            raise InputError(
                f"the global batch size must be {before}, as {run.path} was trained with (got {now} with "
                f"{trainer.world_size} device(s)): set data.global_batch_size, which holds on any number of devices, or "
                "give another --name"
            )
        for name, given in _data(trainer).items():
            if name != "evaluation" and rows.get(name) != given:
                raise InputError(
                    f"the {name} rows differ from those that {run.path} was trained on ({given['rows']} rows, "
                    f"{rows.get(name, {}).get('rows')} there): {elsewhere}"
                )
        tokens, before = ForgetRetain.of(trainer).training_tokens, manifest.get("tokens", {})
        tokenizer = tokenizer_fingerprint(ForgetRetain.of(trainer).tokenizer)
        if manifest.get("tokenizer", tokenizer) != tokenizer:
            raise InputError(
                f"the tokenizer differs from the one that {run.path} was trained with ({tokenizer}, "
                f"{manifest['tokenizer']} there): {elsewhere}"
            )
        if changed := [kind for kind in tokens if tokens[kind] != before.get(kind)]:
            raise InputError(
                f"the token ids of the {' and '.join(changed)} rows differ from those that {run.path} was trained on: give "
                f"data.prompt, data.max_length and data.too_long as then, or {elsewhere}"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the manifest."""
        self._start(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the manifest of a run that only evaluates."""
        if self._only_evaluates(trainer):
            self._start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the step of a resumed run, which is known only now."""
        if trainer.ckpt_path is not None and trainer.is_global_zero:
            run = RunFolder(trainer.default_root_dir)
            run.add_to_manifest(
                resumed_at_steps=[*run.read_manifest()["resumed_at_steps"], trainer.global_step]
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record that training has ended."""
        self._end(trainer, "trained")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record that a run that only evaluates has finished."""
        if self._only_evaluates(trainer):
            self.finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record an interruption."""
        if isinstance(exception, Interrupted) and self.written:
            self._end(trainer, str(exception))

    def finish(self, trainer: Trainer) -> None:
        """Record that training, evaluation and export are done, so that there is nothing to resume."""
        self._end(trainer, "finished")
        if trainer.is_global_zero:
            RunFolder(trainer.default_root_dir).error_log.unlink(missing_ok=True)

    def fail(self, trainer: Trainer, cause: str) -> None:
        """Record why the run has failed, on the rank that knows the first cause, if the manifest can be written."""
        with suppress(OSError, WriteError):
            self._write_end(trainer, f"failed: {cause}")

    @staticmethod
    def _only_evaluates(trainer: Trainer) -> bool:
        """Return whether this is a run of `validate` with a folder of its own, not the last evaluation of a `fit`."""
        return (
            trainer.state.fn == "validate"
            and RunFolder(trainer.default_root_dir).read_manifest().get("command") != "fit"
        )

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        run = RunFolder(trainer.default_root_dir)
        earlier = trainer.strategy.broadcast(run.read_manifest())
        resumed = trainer.state.fn == "fit" and trainer.ckpt_path is not None and bool(earlier)
        at_start = earlier["policy"]["weights_at_start"] if resumed else trained_weights(module, trainer)
        # From here on no rank removes what the run leaves behind, though only the first one writes.
        self.written = True
        if not trainer.is_global_zero:
            return
        data = ForgetRetain.of(trainer)
        model, adapter = module.language_model, module.policy.adapter
        further = () if adapter is None else ("peft",)
        record = {
            "status": "running",
            "command": trainer.state.fn.value if trainer.state.fn else None,
            "started": earlier.get("started", _now()) if resumed else _now(),
            "resumed_at_steps": earlier["resumed_at_steps"] if resumed else [],
            "dipo_pl": __version__,
            "versions": installed_versions(*further),
            "platform": platform.platform(),
            "arguments": self.arguments,
            "seed": data.seed,
            "device": str(pl_module.device),
            "world_size": trainer.world_size,
            "global_batch": _global_batch(trainer),
            "tokenizer": tokenizer_fingerprint(data.tokenizer),
            "tokens": data.training_tokens,
            "precision": str(trainer.precision),
            "gradient_clip": trainer.gradient_clip_val,
            "attention": attention_implementation(model.config),
            "max_epochs": trainer.max_epochs,
            "max_steps": trainer.max_steps,
            "policy": {
                "source": redact(module.policy.source),
                "class": type(model).__name__.removeprefix("FSDP"),
                "dtype": str(model.dtype),
                "parameters": module.size,
                "trained_parameters": module.trained_size,
                "frozen_weights": module.frozen_weights,
                "weights_at_start": at_start,
            },
            "data": _data(trainer),
            "to_forget": data.forgotten,
        }
        for each in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(each, ManifestEntry) and (entry := each.record(trainer, pl_module)):
                record[each.entry] = entry
        write_text(run.manifest, json.dumps(record, indent=2) + "\n")

    def _end(self, trainer: Trainer, status: str) -> None:
        if trainer.is_global_zero:
            self._write_end(trainer, status)

    @staticmethod
    def _write_end(trainer: Trainer, status: str) -> None:
        RunFolder(trainer.default_root_dir).add_to_manifest(
            status=status, ended=_now(), epochs=trainer.current_epoch, steps=trainer.global_step
        )


def _global_batch(trainer: Trainer) -> int:
    rows: int = ForgetRetain.of(trainer).batch_size * trainer.world_size * trainer.accumulate_grad_batches
    return rows


def _data(trainer: Trainer) -> dict[str, Any]:
    data = ForgetRetain.of(trainer)
    return {
        "forget": _rows(data.row_sets.forget),
        "retain": _rows(data.row_sets.retain),
        **{
            name: {"rows": len(answers), "fingerprint": texts_fingerprint(answers)}
            for name, answers in data.companions.items()
        },
        "evaluation": {
            each.name: _rows(each.rows) | ({} if each.whole is None else {"of": each.whole})
            for each in data.evaluation_sets
        },
    }


def _rows(rows: Sequence[Row]) -> dict[str, Any]:
    return {"rows": len(rows), "fingerprint": rows_fingerprint(rows)}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
