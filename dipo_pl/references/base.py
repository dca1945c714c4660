"""Base of references: the frozen model that losses compare the policy with, which is the policy before training."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dipo_pl.batch import Batch, Encoded
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import Layer


@dataclass
class ReferenceContext:
    """Properties of a run that a reference may need.

    Attributes:
        layers: layers whose states the losses ask for.
        sequences: all training sequences by section; `Batch.rows` are indices into these.
        identity: fingerprints of what the sequences are made from (tokenizer, rows), by name.
        folder: run folder.
        device: device on which the run computes.
        precision: returns the context of the run's forward passes.
        rank: rank of this process.
        world_size: number of ranks.
        barrier: waits until all ranks have called it.
    """

    layers: Collection[Layer]
    sequences: Mapping[str, Sequence[Encoded]]
    identity: Mapping[str, str]
    folder: Path
    device: torch.device
    precision: Callable[[], AbstractContextManager[None]]
    rank: int
    world_size: int
    barrier: Callable[[], None]


class Reference(ABC):
    """Base of references: gives hidden states and an output head, without showing where they come from.

    A reference is not an nn.Module, so that a LightningModule does not register it: it is in no checkpoint, no
    optimizer and no gradient bucket, and train() does not change its mode.
    """

    @abstractmethod
    def attach(self, policy: PreTrainedModel, context: ReferenceContext) -> None:
        """Prepare the reference; called once, with the starting weights of the policy, before a checkpoint is loaded."""

    def shard(  # noqa: B027
        self, policy: PreTrainedModel, shard: Callable[[PreTrainedModel], PreTrainedModel]
    ) -> None:
        """Create and shard a model of the reference's own; called before `attach`, before the policy is sharded."""

    @abstractmethod
    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Move or cast the tensors that the reference holds, as nn.Module.to does."""

    @property
    @abstractmethod
    def head(self) -> OutputHead:
        """Output head of the reference."""

    @abstractmethod
    def states(self, batch: Batch, layers: Collection[Layer] = (None,)) -> dict[Layer, Tensor]:
        """Return the hidden states of each layer at the answer positions of a batch, [N, d], detached."""
