"""The frozen reference that forgetting is measured against: the policy as it was before training."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dipo_pl.batch import Batch
from dipo_pl.head import OutputHead, decoder_states


class Reference(ABC):
    """Gives last hidden states and a head; no loss can tell where they come from.

    It is no nn.Module, so a LightningModule that holds it does not register it: it is in no checkpoint,
    no optimizer, no gradient bucket, and no call of train() reaches it.
    """

    @abstractmethod
    def attach(self, policy: PreTrainedModel) -> None:
        """Called once, with the policy's starting weights, before a checkpoint is loaded."""

    @abstractmethod
    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Moves or casts what the reference holds, as nn.Module._apply does."""

    @property
    @abstractmethod
    def head(self) -> OutputHead: ...

    @abstractmethod
    def states(self, batch: Batch) -> Tensor:
        """[N, d] last hidden states at the batch's answer positions, detached."""


class FrozenCopy(Reference):
    """A second copy of the model in memory, frozen and in eval mode."""

    def __init__(self) -> None:
        self._model: PreTrainedModel | None = None

    @property
    def model(self) -> PreTrainedModel:
        if self._model is None:
            raise RuntimeError("the reference is used before attach() has given it a model")
        return self._model

    def attach(self, policy: PreTrainedModel) -> None:
        self._model = copy.deepcopy(policy).eval().requires_grad_(False)

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        if self._model is not None:
            self._model._apply(function)

    @property
    def head(self) -> OutputHead:
        return OutputHead.of(self.model)

    @torch.no_grad()
    def states(self, batch: Batch) -> Tensor:
        states = decoder_states(self.model, batch.input_ids, batch.attention_mask)
        return states.flatten(0, 1).index_select(0, batch.positions)
