"""Callback that exports the trained model as a Hugging Face folder."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from dipo_pl.distributed import full_state_dict, is_sharded
from dipo_pl.errors import InputError
from dipo_pl.models.lora import merged, save_adapter
from dipo_pl.report.model_card import model_card, write_model_card
from dipo_pl.storage.checkpoints import read_checkpoint, read_weights
from dipo_pl.storage.files import replacing_folder
from dipo_pl.storage.run_folder import RunFolder


class Export(Callback):
    """Callback that writes model, tokenizer and model card to hf/ in the run folder at the end of training.

    Args:
        enabled: false exports nothing.
        best: export the best checkpoint, as chosen by `checkpoint.monitor`, instead of the last weights.
        adapter: export only the adapter, in PEFT's format; else an adapter is merged into the model's weights.
    """

    def __init__(self, enabled: bool = True, best: bool = False, adapter: bool = False) -> None:
        self.enabled = enabled
        self.best = best
        self.adapter = adapter

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
        run, step = RunFolder(trainer.default_root_dir), trainer.global_step
        best = _best_path(trainer) if self.best else None
        if best is not None:
            step = read_checkpoint(best)["global_step"]
            # Frozen weights are not in checkpoints.
            weights |= {name.removeprefix("model."): each for name, each in read_weights(best).items()}
        with replacing_folder(run.hf) as temporary:
            if self.adapter:
                save_adapter(model, weights, temporary)
            else:
                model.save_pretrained(temporary, state_dict=merged(model, weights))
            module.policy.tokenizer().save_pretrained(temporary)
            # With fast_dev_run Lightning writes no config, which the card needs.
            if run.config.is_file():
                (temporary / "README.md").write_text(model_card(run, step), encoding="utf-8")
        run.add_to_manifest(exported_step=step)
        if self.best and best is None:
            rank_zero_warn(
                f"no evaluation during training had what chooses the best checkpoint: exported the last one (step {step})"
            )
        rank_zero_info(f"exported the model{f' of step {step}' if self.best else ''} to {run.hf}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the model card with an evaluation that follows the export."""
        if trainer.is_global_zero and trainer.state.fn == "validate":
            run = RunFolder(trainer.default_root_dir)
            if run.read_manifest().get("command") == "fit":
                write_model_card(run)


def _best_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    keepers = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    return next((each for each in keepers if each.monitor is not None and each.save_top_k != 0), None)


def _best_path(trainer: Trainer) -> Path | None:
    checkpoint = _best_checkpoint(trainer)
    best = Path(checkpoint.best_model_path) if checkpoint and checkpoint.best_model_path else None
    return best if best is not None and best.exists() else None
