"""Callback that checks that training has changed the policy."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from dipo_pl.distributed import is_sharded
from dipo_pl.errors import TrainingError
from dipo_pl.models.weight_sample import changed_share, sampled
from dipo_pl.storage.fingerprints import weights_fingerprint
from dipo_pl.storage.run_folder import RunFolder


def trained_weights(module: Any, trainer: Trainer) -> str:
    """Return the fingerprint of the trainable weights; empty on ranks that do not need it.

    All ranks must call this, since those of a sharded model gather its weights.
    """
    model = module.language_model
    if not (trainer.is_global_zero or is_sharded(model)):
        return ""
    trained = (each for each in model.parameters() if each.requires_grad)
    return weights_fingerprint(nn.ParameterList(trained) if module.frozen else model)


# Below this share of changed weights a run warns: in float32 a step changes nearly all of those it reaches.
FEW = 0.1


class WeightChange(Callback):
    """Callback that adds the fingerprint of the trained weights and the share that has changed to the manifest.

    It fails if no weight has changed, and warns if few have: such a policy would otherwise be measured, exported and
    compared as if it had been trained.
    """

    def __init__(self) -> None:
        self._first_step = 0

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Record the step at which a run starts from another run's checkpoint."""
        if not RunFolder(trainer.default_root_dir).read_manifest():
            self._first_step = checkpoint["global_step"]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the weights with those before training; raise TrainingError if no weight has changed."""
        weights = trained_weights(pl_module, trainer)
        share = _changed_share(pl_module, trainer)
        unchanged = False
        if trainer.is_global_zero:
            run = RunFolder(trainer.default_root_dir)
            policy = run.read_manifest()["policy"] | {"weights_at_end": weights, "changed_share": share}
            run.add_to_manifest(policy=policy)
            unchanged = policy["weights_at_end"] == policy["weights_at_start"]
        trained = trainer.global_step > self._first_step and not trainer.fast_dev_run  # type: ignore[attr-defined]
        # All ranks fail together.
        if trainer.strategy.broadcast(unchanged) and trained:
            raise TrainingError(_advice(trainer, pl_module))
        if trained and share is not None and share < FEW:
            rank_zero_warn(
                f"only {share:.1%} of the trained weights have changed after {trainer.global_step} steps: a step may be too "
                "small for their precision, or the losses reach few of them; see model.optimizer.lr and model.policy.dtype"
            )


def _changed_share(module: Any, trainer: Trainer) -> float | None:
    """Return the share of the trained weights that has changed, None on ranks that do not need it, as above."""
    if not (trainer.is_global_zero or is_sharded(module.language_model)):
        return None
    return changed_share(module.starting_sample, sampled(module.trained_weights))


def _advice(trainer: Trainer, module: Any) -> str:
    rate = module.learning_rate
    trained = module.trained_weights.values()
    return (
        f"no weight of the policy has changed after {trainer.global_step} steps: check the learning rate ({rate:g}), "
        f"model.warmup ({module.warmup:g}), the losses and their weights (train/gradient_norm is the gradient that reaches "
        f"the policy), and the trainable weights ({len(trained)} tensors, "
        f"{', '.join(sorted({str(each.dtype) for each in trained}))}: a step may be too small for this precision)"
    )
