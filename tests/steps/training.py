"""A few steps of a tiny model in Lightning's loop, and what each batch and each step of them gave."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from tiny_models import tiny_model
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from dipo_pl.batch import Batch, Encoded, collate
from dipo_pl.models.from_config import FromConfig
from dipo_pl.modules.unlearning import Unlearning
from dipo_pl.references.base import ReferenceContext

VOCABULARY = 13
RATE, MOMENTUM = 0.01, 0.9


def model(**changes: Any) -> PreTrainedModel:
    """Return a model whose layers all matter."""
    return tiny_model(spread=0.1, vocab_size=VOCABULARY, initializer_range=0.2, **changes).train()


def batches(module: Unlearning, sizes: list[int]) -> list[Batch]:
    """Return batches of these numbers of pairs, of uneven lengths, the same ones for every module."""
    made, start = [], 0
    kinds = [kind for some in module.sections.values() for kind in some]
    for size in sizes:
        sequences = {kind: [sequence(kind, start + row) for row in range(size)] for kind in kinds}
        made.append(collate(sequences, [*range(start, start + size)] * len(kinds), module.sections))
        start += size
    return made


def sequence(kind: str, row: int) -> Encoded:
    """Return one of the sequences, in which the row's tokens are those of other kinds up to its own length."""
    own, shared = (torch.Generator().manual_seed(100 * row + seed) for seed in (sum(kind.encode()), 0))
    length = int(torch.randint(4, 9, (), generator=own))
    ids = torch.randint(3, VOCABULARY, (9,), generator=shared).tolist()
    return Encoded(tuple(ids[:length]), int(torch.randint(1, length, (), generator=own)))


def unlearning(
    step: Any, forget: Any, retain: Any, policy: PreTrainedModel | None = None, **options: Any
) -> Unlearning:
    """Return a module with a model and a reference."""
    module = Unlearning(
        FromConfig({"model_type": "llama"}), forget, retain, step=step, schedule="constant_with_warmup", warmup=0.0,
        **{"optimizer": lambda weights: torch.optim.SGD(weights, RATE, MOMENTUM)} | options,
    )  # fmt: skip
    module.model = model() if policy is None else policy
    context = ReferenceContext(
        {None}, {}, {}, Path(), torch.device("cpu"), precision=nullcontext, rank=0, world_size=1, barrier=int
    )
    if module.compared:
        module.reference.attach(module.model, context)
    return module


@dataclass
class Recorder(Callback):
    """Keeps the loss of each batch, and for each step the gradient before clipping and the weights after it."""

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor | None]] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    logged: list[dict[str, float]] = field(default_factory=list)

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.gradients.append(
            {
                name: None if each.grad is None else each.grad.clone()
                for name, each in module.trained_weights.items()
            }
        )

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.losses.append(trainer.callback_metrics["train/loss"].item())
        self.logged.append({name: float(each) for name, each in trainer.callback_metrics.items()})
        if trainer.global_step > len(self.weights):
            self.weights.append(
                {name: each.detach().clone() for name, each in module.trained_weights.items()}
            )


def train(
    module: Unlearning, given: list[Batch], accumulate: int = 1, clip: float | None = None, **options: Any
) -> Recorder:
    """Train on the batches once."""
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=1, accumulate_grad_batches=accumulate, gradient_clip_val=clip,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[recorder], **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(given, batch_size=None))
    return recorder


def largest_difference(ours: dict[str, Tensor | None], theirs: dict[str, Tensor]) -> float:
    """Return the largest difference of two gradients, as a share of the largest entry of the second one."""
    size = max(float(each.abs().max()) for each in theirs.values())
    return (
        max(
            float(
                (torch.zeros_like(each) if ours[name] is None else ours[name]).double().sub(each).abs().max()
            )
            for name, each in theirs.items()
        )
        / size
    )
