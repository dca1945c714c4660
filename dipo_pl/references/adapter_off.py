"""Reference without a second model: the policy without its adapters."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dipo_pl.batch import Batch
from dipo_pl.errors import InputError
from dipo_pl.models.adapters import adapted_layers
from dipo_pl.models.eval_mode import eval_mode
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import Layer, answer_states
from dipo_pl.references.base import Reference, ReferenceContext


class AdapterOff(Reference):
    """Reference that is the policy without its adapters: one model in memory. Needs model.policy.adapter.

    The weights under the adapters are frozen, so this is bitwise the policy before training.
    """

    def __init__(self) -> None:
        self._policy: PreTrainedModel | None = None
        self._adapted: list[tuple[nn.Module, str, Any]] = []

    @property
    def policy(self) -> PreTrainedModel:
        """The policy; RuntimeError if `attach` has not been called."""
        if self._policy is None:
            raise RuntimeError("AdapterOff is used before attach() has given it a model")
        return self._policy

    def attach(self, policy: PreTrainedModel, context: ReferenceContext) -> None:
        """Keep the policy itself; raise InputError if the policy has no adapters."""
        self._policy = policy
        for name, layer in adapted_layers(policy).items():
            parent, _, attribute = name.rpartition(".")
            self._adapted.append((policy.get_submodule(parent), attribute, layer))
        if not self._adapted:
            raise InputError(
                "model.reference is AdapterOff and the policy has no adapter: set model.policy.adapter to LoRA, or "
                "model.reference to FrozenCopy"
            )

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Do nothing: the policy is moved and cast by itself."""

    @property
    def head(self) -> OutputHead:
        """Output head of the policy, which has no adapter."""
        return OutputHead.of(self.policy)

    @torch.no_grad()
    def states(self, batch: Batch, layers: Collection[Layer] = (None,)) -> dict[Layer, Tensor]:
        """Return the hidden states of each layer at the answer positions of a batch, [N, d]."""
        with eval_mode(self.policy), self._without_adapters():
            return answer_states(self.policy, batch, layers)

    @contextmanager
    def _without_adapters(self) -> Iterator[None]:
        """Put the base layers in the places of the adapted layers."""
        try:
            # Not by peft's enable_adapters(), which changes requires_grad between forward and backward pass.
            for parent, attribute, layer in self._adapted:
                setattr(parent, attribute, layer.get_base_layer())
            yield
        finally:
            for parent, attribute, layer in self._adapted:
                setattr(parent, attribute, layer)
