"""One small training, split in many ways: batches of a step over time, over two ranks of DDP and FSDP2."""

from pathlib import Path

# 20 forget rows, so that the third step of an epoch has 4. No decay: a run that is cut short has the same rates.
TRAINING = (
    "fit", "--config", "smoke.yaml", "--data.global_batch_size", "8", "--data.evaluation_rows", "4",
    "--trainer.max_epochs", "2", "--trainer.logger", "false", "--model.schedule", "constant_with_warmup",
    "--model.warmup", "0", "--samples.rows", "0",
)  # fmt: skip
SILENT = (
    "--forget_quality.generate_every", "0", "--trainer.num_sanity_val_steps", "0", "--trainer.check_val_every_n_epoch",
    "2", "--data.evaluate", "[forget, retain]",
)  # fmt: skip
METHODS = {
    "dipo": SILENT,
    "npo": (*SILENT, "--model.forget_loss", "NPO", "--model.forget_loss.beta", "0.1", "--model.retain_loss",
            "ReferenceKL"),
    # With generated answers, a tied head and states from disk.
    "stored": ("--model.policy.config.tie_word_embeddings", "true", "--model.reference", "StoredStates"),
    "graddiff": (*SILENT, "--config", "graddiff.yaml"),
    # Whose gradients are all clipped.
    "lora": (*SILENT, "--config", "lora.yaml", "--trainer.gradient_clip_val", "0.001"),
    # A loss that does not reach all layers.
    "rmu": (*SILENT, "--config", "rmu.yaml"),
    # Most weights are frozen, in each layer and in the head.
    "part": (*SILENT, "--model.trainable", "['model.layers.*.mlp.*']"),
    # Distances and products over ranks, of gradients that are clipped, and of adapters with activations computed again.
    "sam": (*SILENT, "--model.forget_loss", "NPO", "--model.forget_loss.beta", "0.1", "--model.retain_loss", "ReferenceKL",
            "--config", "sam.yaml", "--model.step.rho", "0.5", "--trainer.gradient_clip_val", "0.1"),
    "gru": (*SILENT, "--config", "gru.yaml"),
    "sam lora": (*SILENT, "--config", "lora.yaml", "--config", "sam.yaml",
                 "--model.step.rho", "0.5", "--model.policy.gradient_checkpointing", "true"),
    # Companions of forget rows, adapters that are switched off for the reference, and a weight that follows a loss.
    "adapted": (*SILENT, "--config", "idk_dpo.yaml", "--config", "lora.yaml", "--model.optimizer.lr", "0.003",
                "--model.policy.gradient_checkpointing", "true", "--model.retain_loss", "ReferenceKL",
                "--model.retain_weight", "DualWeight", "--model.retain_weight.initial", "1",
                "--model.retain_weight.epsilon", "0.0001", "--model.retain_weight.step", "500",
                "--model.retain_weight.warmup_epochs", "0", "--data.global_batch_size", "12"),
}  # fmt: skip
TWO = ("--trainer.num_nodes", "2", "--data.batch_size", "2", "--trainer.strategy")
ACCUMULATED = ("--data.global_batch_size", "null", "--trainer.accumulate_grad_batches")
# By name: the method, and how its batch of 8 is split.
ALONE = {
    "dipo": ("dipo", ("--data.batch_size", "8")),
    "dipo 4 x 2": ("dipo", ("--data.batch_size", "2")),
    "dipo 8 x 1": ("dipo", ("--data.batch_size", "1")),
    "dipo accumulated": ("dipo", (*ACCUMULATED, "4", "--data.batch_size", "2")),
    "npo": ("npo", ("--data.batch_size", "8")),
    "stored": ("stored", ("--data.batch_size", "8")),
    "graddiff": ("graddiff", ("--data.batch_size", "8")),
    "lora": ("lora", ("--data.batch_size", "8")),
    "graddiff 4 x 2": ("graddiff", ("--data.batch_size", "2")),
    "rmu": ("rmu", ("--data.batch_size", "8")),
    "part": ("part", ("--data.batch_size", "8")),
    "adapted": ("adapted", ("--data.batch_size", "12")),
    "sam": ("sam", ("--data.batch_size", "8")),
    "gru": ("gru", ("--data.batch_size", "8")),
    "sam lora": ("sam lora", ("--data.batch_size", "8")),
}
SHARED = {
    "dipo on ddp": ("dipo", (*TWO, "ddp")),
    "dipo accumulated on ddp": ("dipo", (*TWO, "ddp", *ACCUMULATED, "2")),
    "dipo on fsdp2": ("dipo", (*TWO, "fsdp2")),
    "npo on fsdp2": ("npo", (*TWO, "fsdp2")),
    "stored on fsdp2": ("stored", (*TWO, "fsdp2")),
    "lora on fsdp": ("lora", (*TWO, "fsdp")),
    "rmu on ddp": ("rmu", (*TWO, "ddp")),
    "part on ddp": ("part", (*TWO, "ddp")),
    "part on fsdp2": ("part", (*TWO, "fsdp2")),
    "adapted on fsdp2": ("adapted", (*TWO, "fsdp2", "--data.batch_size", "3")),
    "sam on ddp": ("sam", (*TWO, "ddp")),
    "sam on fsdp2": ("sam", (*TWO, "fsdp2")),
    "gru on ddp": ("gru", (*TWO, "ddp")),
    "gru on fsdp2": ("gru", (*TWO, "fsdp2")),
    "sam lora on fsdp2": ("sam lora", (*TWO, "fsdp2")),
}
SHARDED = (*TWO, "fsdp2", "--config", "sharded_checkpoints.yaml")
# Of one row, so that one rank has nothing to train on.
RELEARNING = (
    "--steps", "2", "--share", "0.05", "--lr", "0.001", "--data.batch_size", "4", "--export.enabled", "true",
)  # fmt: skip
# In the midst of the second epoch.
CUT = ("--trainer.max_steps", "5")


def command(folder: Path, name: str, method: str, *more: str) -> list[str]:
    return [*TRAINING, *METHODS[method], "--output_dir", str(folder), "--name", name.replace(" ", "-"), *more]
