"""Writes the trained model as a Hugging Face folder."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from dipo_pl.distributed import full_state_dict, is_sharded
from dipo_pl.errors import InputError, TrainingError
from dipo_pl.models.lora import merged, save_adapter
from dipo_pl.report.model_card import model_card, write_model_card
from dipo_pl.storage.checkpoint_io import read_checkpoint
from dipo_pl.storage.run_folder import RunFolder, replacing_folder
from dipo_pl.storage.sharded_checkpoint import in_memory


class Export(Callback):
    """At the end of training, writes model, tokenizer and model card to hf/ in the run folder.

    Args:
        enabled: false writes nothing.
        best: write the checkpoint that `checkpoint.monitor` found best instead of the last weights.
        adapter: of a policy with an adapter, write the adapter alone, in peft's format; else a whole model
            with the adapter merged into its weights.
    """

    def __init__(self, enabled: bool = True, best: bool = False, adapter: bool = False) -> None:
        self.enabled = enabled
        self.best = best
        self.adapter = adapter

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.best and _best(trainer) is None:
            raise InputError(
                "export.best is true and nothing says what is best: set checkpoint.monitor (forget_quality_log10_p "
                "or model_utility, say), checkpoint.mode and checkpoint.save_top_k 1"
            )
        module: Any = pl_module
        if self.adapter and module.policy.adapter is None:
            raise InputError(
                "export.adapter is true and the policy has none: set model.policy.adapter, or export.adapter false"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        model = module.language_model
        if not self.enabled or not (trainer.is_global_zero or is_sharded(model)):
            return
        weights = full_state_dict(model)
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        if self.best:
            checkpoint = _best(trainer)
            best = checkpoint.best_model_path if checkpoint else ""
            if not best or not Path(best).exists():
                raise TrainingError(
                    "export.best is true and no best checkpoint was written: see checkpoint.monitor"
                )
            saved = read_checkpoint(Path(best))
            step = saved["global_step"]
            # What is not trained is in no checkpoint.
            weights |= {
                name.removeprefix("model."): in_memory(each) for name, each in saved["state_dict"].items()
            }
        target = RunFolder.of(trainer).hf
        # Lightning's fast_dev_run writes no config, which the card is made of.
        run = RunFolder.of(trainer)
        card = model_card(run, step) if run.config.is_file() else ""
        export(model, module.policy.tokenizer(), weights, target, self.adapter, card)
        RunFolder.of(trainer).add_to_manifest(exported_step=step)
        rank_zero_info(f"the model is in {target}{f', as it was at step {step}' if self.best else ''}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is measured after the export belongs on its card."""
        if trainer.is_global_zero and trainer.state.fn == "validate":
            run = RunFolder.of(trainer)
            if run.read_manifest().get("command") == "fit":
                write_model_card(run)


def _best(trainer: Trainer) -> ModelCheckpoint | None:
    """The callback that keeps the best checkpoint, if any is asked to."""
    keepers = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    return next((each for each in keepers if each.monitor is not None and each.save_top_k != 0), None)


def export(
    model: Any,
    tokenizer: Any,
    weights: dict[str, torch.Tensor],
    target: Path,
    adapter: bool = False,
    card: str = "",
) -> None:
    """`target` holds the old model or the new one, never a mixture."""
    with replacing_folder(target) as temporary:
        if adapter:
            save_adapter(model, weights, temporary)
        else:
            model.save_pretrained(temporary, state_dict=merged(model, weights))
        tokenizer.save_pretrained(temporary)
        if card:
            (temporary / "README.md").write_text(card, encoding="utf-8")
