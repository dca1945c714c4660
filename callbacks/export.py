"""Callback that exports the trained model as a Hugging Face folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from dipo_pl.distributed import full_state_dict, is_sharded
from dipo_pl.errors import InputError
from dipo_pl.models.adapters import (
    adapted_weights,
    check_adapter_export,
    check_export,
    merged,
    plain_name,
    save_adapter,
)
from dipo_pl.models.weight_sample import export_dtype, sampled
from dipo_pl.report.model_card import model_card, write_model_card
from dipo_pl.storage.checkpoints import read_checkpoint, read_weights
from dipo_pl.storage.files import replacing_folder
from dipo_pl.storage.fingerprints import tensors_fingerprint
from dipo_pl.storage.run_folder import RunFolder


class Export(Callback):
    """Callback that writes model, tokenizer and model card to hf/ in the run folder at the end of training.

    Args:
        enabled: false exports nothing.
        best: export the best checkpoint, as chosen by `checkpoint.monitor`, instead of the last weights.
        adapter: export only the adapter, in PEFT's format; else an adapter is merged into the model's weights.
        dtype: data type of the exported weights; `auto` is that of the checkpoint that was trained if rounding to it
            keeps the change of 99% of the changed weights, else that in which they were trained.
    """

    def __init__(
        self,
        enabled: bool = True,
        best: bool = False,
        adapter: bool = False,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    ) -> None:
        self.enabled = enabled
        self.best = best
        self.adapter = adapter
        self.dtype = dtype

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that what is to be exported will exist.

        Raises:
            InputError: there is no criterion for the best checkpoint, or no adapter.
        """
        module: Any = pl_module
        if self.best and _best_checkpoint(trainer) is None:
            raise InputError(
                "export.best is true, but no metric defines the best checkpoint: set checkpoint.monitor "
                "(forget_quality_log10_p or model_utility, for example), checkpoint.mode and checkpoint.save_top_k 1"
            )
        if self.adapter and module.policy.adapter is None:
            raise InputError(
                "export.adapter is true, but the policy has no adapter: set model.policy.adapter, or export.adapter false"
            )
        if self.adapter and module.policy.adapter.initialization is not None:
            raise InputError(
                "export.adapter is true, and model.policy.adapter.initialization FILA changes the weights under the "
                "adapter, so that it fits no other model: set export.adapter to false"
            )

    def checkpoint(self, trainer: Trainer) -> Path | None:
        """Return the checkpoint that is exported; None if the last weights are, or nothing is."""
        found = _best_checkpoint(trainer) if self.enabled and self.best else None
        best = Path(found.best_model_path) if found and found.best_model_path else None
        return best if best is not None and best.exists() else None

    def step(self, trainer: Trainer) -> int:
        """Return the optimizer steps behind the exported weights, or the last ones if nothing is exported."""
        best = self.checkpoint(trainer)
        return trainer.global_step if best is None else int(read_checkpoint(best)["global_step"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try the export of adapters before the first step.

        Raises:
            InputError: they could not be exported.
        """
        module: Any = pl_module
        model = module.language_model
        # A sharded model has no layers of its own on any rank.
        if not self.enabled or is_sharded(model) or not adapted_weights(model):
            return
        if self.adapter:
            check_adapter_export(model, getattr(module.policy, "trust_remote_code", False))
        else:
            check_export(model)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder; it holds the old or the new model, never a mixture.

        Raises:
            WriteError: the folder cannot be written.
        """
        module: Any = pl_module
        model = module.language_model
        if not self.enabled or not (trainer.is_global_zero or is_sharded(model)):
            return
        weights = full_state_dict(model)
        if not trainer.is_global_zero:
            return
        run, step = RunFolder(trainer.default_root_dir), self.step(trainer)
        best = self.checkpoint(trainer)
        if best is not None:
            # Frozen weights are not in checkpoints.
            weights |= {name.removeprefix("model."): each for name, each in read_weights(best).items()}
        added: dict[str, Any] = {"exported_step": step}
        with replacing_folder(run.hf) as temporary:
            if self.adapter:
                save_adapter(model, weights, temporary)
            else:
                added |= self._save(module, weights, temporary)
            module.policy.tokenizer().save_pretrained(temporary)
            if not self.adapter:
                module.policy.copy_companions(temporary)
            # With fast_dev_run Lightning writes no config, which the card needs.
            if run.config.is_file():
                (temporary / "README.md").write_text(model_card(run, step), encoding="utf-8")
        run.add_to_manifest(**added)
        told = added.get("exported_as")
        if self.best and best is None:
            rank_zero_warn(
                f"no evaluation during training had what chooses the best checkpoint: exported the last one (step {step})"
            )
        rank_zero_info(
            f"exported the model{f' of step {step}' if self.best else ''} to {run.hf}{f', {told}' if told else ''}"
        )

    def _save(self, module: Any, weights: dict[str, Tensor], folder: Path) -> dict[str, str]:
        """Write the model without adapters; return what the manifest says of it: data type in words, and fingerprint."""
        model, before = module.language_model, module.starting_sample
        if adapted := adapted_weights(model):
            frozen = {plain_name(name): each for name, each in weights.items()}
            initialization = module.policy.adapter.initialization
            changed = initialization is not None and initialization.before
            before = changed or sampled({name: frozen[name] for name in adapted})
        weights = merged(model, weights, exact=True)
        after = sampled({name: weights[name] for name in before})
        asked = None if self.dtype == "auto" else getattr(torch, self.dtype)
        dtype, told = export_dtype(before, after, module.policy.stored_dtype, asked)
        rounded = {
            name: each.to(dtype) if each.is_floating_point() else each for name, each in weights.items()
        }
        as_loaded = _as_loaded(model, rounded)
        # This takes one of two tied weights out of the dictionary.
        model.save_pretrained(folder, state_dict=rounded)
        config = folder / "config.json"
        # transformers writes the dtype of the model in memory.
        values = json.loads(config.read_text(encoding="utf-8")) | {"dtype": str(dtype).removeprefix("torch.")}
        config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        return {"exported_as": told, "exported_weights": as_loaded}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the model card with an evaluation that follows the export."""
        if trainer.is_global_zero and trainer.state.fn == "validate":
            run = RunFolder(trainer.default_root_dir)
            if run.read_manifest().get("command") == "fit":
                write_model_card(run)


def _as_loaded(model: nn.Module, exported: Mapping[str, Tensor]) -> str:
    """Return the fingerprint that these weights have once a run loads them, in the data types of `model`."""
    named = ((plain_name(name), each) for name, each in model.named_parameters() if ".lora_" not in name)
    return tensors_fingerprint((name, exported[name].to(each.dtype)) for name, each in named)


def _best_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    keepers = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    return next((each for each in keepers if each.monitor is not None and each.save_top_k != 0), None)
