"""The frozen reference that forgetting is measured against: the policy as it was before training."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dipo_pl.batch import Batch, Encoded
from dipo_pl.distributed import frozen_view
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import Layer, answer_states


@dataclass
class Surroundings:
    """What a reference may need of the run that it serves.

    Attributes:
        layers: those whose states losses will ask for.
        sequences: all training sequences by section; `Batch.rows` counts in these.
        identity: fingerprints of what the sequences were made from, by name (tokenizer, prompt format, rows).
        folder: the run's.
        device: where the run computes.
        precision: context of the run's forward passes.
        rank, world_size: of this process.
        barrier: waits for all processes.
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
    """Gives hidden states and a head; no loss can tell where they come from.

    It is no nn.Module, so a LightningModule that holds it does not register it: it is in no checkpoint,
    no optimizer, no gradient bucket, and no call of train() reaches it.
    """

    @abstractmethod
    def attach(self, policy: PreTrainedModel, surroundings: Surroundings) -> None:
        """Called once, with the policy's starting weights, before a checkpoint is loaded."""

    def shard(  # noqa: B027
        self, policy: PreTrainedModel, shard: Callable[[PreTrainedModel], PreTrainedModel]
    ) -> None:
        """Called before `attach` and before the policy is sharded; a model of one's own is made and sharded here."""

    @abstractmethod
    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Moves or casts what the reference holds, as nn.Module._apply does."""

    @property
    @abstractmethod
    def head(self) -> OutputHead: ...

    @abstractmethod
    def states(self, batch: Batch, layers: Collection[Layer] = (None,)) -> dict[Layer, Tensor]:
        """[N, d] hidden states of each layer at the batch's answer positions, detached."""


class FrozenCopy(Reference):
    """A second copy of the model in memory, frozen and in eval mode; in shards where the policy is."""

    def __init__(self) -> None:
        self._model: PreTrainedModel | None = None

    @property
    def model(self) -> PreTrainedModel:
        if self._model is None:
            raise RuntimeError("the reference is used before attach() has given it a model")
        return self._model

    def shard(self, policy: PreTrainedModel, shard: Callable[[PreTrainedModel], PreTrainedModel]) -> None:
        self._model = shard(frozen_view(policy))

    def attach(self, policy: PreTrainedModel, surroundings: Surroundings) -> None:
        if self._model is None:
            self._model = copy.deepcopy(policy).eval().requires_grad_(False)

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        if self._model is not None:
            self._model._apply(function)

    @property
    def head(self) -> OutputHead:
        return OutputHead.of(self.model)

    @torch.no_grad()
    def states(self, batch: Batch, layers: Collection[Layer] = (None,)) -> dict[Layer, Tensor]:
        return answer_states(self.model, batch, layers)
