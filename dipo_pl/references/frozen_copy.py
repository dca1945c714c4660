"""Reference that is a second model in memory."""

import copy
from collections.abc import Callable, Collection

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dipo_pl.batch import Batch
from dipo_pl.distributed import frozen_view
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import Layer, answer_states
from dipo_pl.private_names import apply_to
from dipo_pl.references.base import Reference, ReferenceContext


class FrozenCopy(Reference):
    """Reference that is a second copy of the model in memory, frozen and in eval mode, sharded where the policy is."""

    def __init__(self) -> None:
        self._model: PreTrainedModel | None = None

    @property
    def model(self) -> PreTrainedModel:
        """The copy; RuntimeError if `attach` has not been called."""
        if self._model is None:
            raise RuntimeError("FrozenCopy is used before attach() has given it a model")
        return self._model

    def shard(self, policy: PreTrainedModel, shard: Callable[[PreTrainedModel], PreTrainedModel]) -> None:
        """Create the copy and shard it."""
        self._model = shard(frozen_view(policy))

    def attach(self, policy: PreTrainedModel, context: ReferenceContext) -> None:
        """Create the copy, unless `shard` has done so."""
        if self._model is None:
            self._model = copy.deepcopy(policy).eval().requires_grad_(False)

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Move or cast the copy."""
        if self._model is not None:
            apply_to(self._model, function)

    @property
    def head(self) -> OutputHead:
        """Output head of the copy."""
        return OutputHead.of(self.model)

    @torch.no_grad()
    def states(self, batch: Batch, layers: Collection[Layer] = (None,)) -> dict[Layer, Tensor]:
        """Return the hidden states of each layer at the answer positions of a batch, [N, d]."""
        return answer_states(self.model, batch, layers)
