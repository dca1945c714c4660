"""Whether training has changed the policy."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import nn

from dipo_pl.distributed import is_sharded
from dipo_pl.errors import TrainingError
from dipo_pl.storage.fingerprints import weights_fingerprint
from dipo_pl.storage.run_folder import RunFolder


def trained_weights(module: Any, trainer: Trainer) -> str:
    """Fingerprint of the weights that are trained; empty where another process takes it."""
    model = module.language_model
    if not (trainer.is_global_zero or is_sharded(model)):
        return ""
    if module.frozen:
        return weights_fingerprint(
            nn.ParameterList(each for each in model.parameters() if each.requires_grad)
        )
    return weights_fingerprint(model)


class WeightChange(Callback):
    """Adds the weights' fingerprint after training to the manifest; a training that changed none of them fails.

    Such a policy would be measured, exported and compared as if it had been trained.
    """

    def __init__(self) -> None:
        self._first_step = 0

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Another run's checkpoint: the start that this run's manifest knows is there.
        if not RunFolder(trainer.default_root_dir).read_manifest():
            self._first_step = checkpoint["global_step"]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = trained_weights(pl_module, trainer)
        unchanged = trainer.is_global_zero and self._record(trainer, weights)
        trained = trainer.global_step > self._first_step and not trainer.fast_dev_run  # type: ignore[attr-defined]
        # All processes end together.
        if trainer.strategy.broadcast(unchanged) and trained:
            raise TrainingError(_where_to_look(trainer, pl_module))

    @staticmethod
    def _record(trainer: Trainer, weights: str) -> bool:
        """Whether the weights are as they started."""
        policy = RunFolder(trainer.default_root_dir).read_manifest()["policy"]
        policy["weights_at_end"] = weights
        RunFolder(trainer.default_root_dir).add_to_manifest(policy=policy)
        return bool(policy["weights_at_end"] == policy["weights_at_start"])


def _where_to_look(trainer: Trainer, module: Any) -> str:
    rate = max(group.get("initial_lr", group["lr"]) for group in trainer.optimizers[0].param_groups)
    trained = [each for each in module.parameters() if each.requires_grad]
    return (
        f"after {trainer.global_step} steps every weight of the policy is what it was before: look at the learning "
        f"rate ({rate:g}), model.warmup ({module.warmup:g}), the losses and their weights (train/gradient_norm tells "
        f"what reached the policy), and the weights that are trained ({len(trained)} tensors, "
        f"{', '.join(sorted({str(each.dtype) for each in trained}))}: a step may be too small for them)"
    )
