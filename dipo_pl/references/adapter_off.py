"""A reference without a second model: the policy with its adapters switched off."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dipo_pl.batch import Batch
from dipo_pl.errors import InputError
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import Layer, answer_states
from dipo_pl.models.lora import adapted_layers
from dipo_pl.references.base import Reference, Surroundings


class AdapterOff(Reference):
    """The policy itself with its adapters switched off: one model in memory. Needs model.policy.adapter.

    The policy's own weights are frozen, so this is bitwise the policy as it started.
    """

    def __init__(self) -> None:
        self._policy: PreTrainedModel | None = None
        self._modules: list[nn.Module] = []
        self._adapted: list[Any] = []

    @property
    def policy(self) -> PreTrainedModel:
        if self._policy is None:
            raise RuntimeError("the reference is used before attach() has given it a model")
        return self._policy

    def attach(self, policy: PreTrainedModel, surroundings: Surroundings) -> None:
        """Takes the policy itself.

        Raises:
            InputError: the policy has no adapters.
        """
        self._policy = policy
        self._modules = list(policy.modules())
        self._adapted = list(adapted_layers(policy).values())
        if not self._adapted:
            raise InputError(
                "model.reference is AdapterOff, and the policy has no adapter to be switched off: set "
                "model.policy.adapter to LoRA, or model.reference to FrozenCopy"
            )

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Nothing: the policy is moved and cast by itself."""

    @property
    def head(self) -> OutputHead:
        return OutputHead.of(self.policy)

    @torch.no_grad()
    def states(self, batch: Batch, layers: Collection[Layer] = (None,)) -> dict[Layer, Tensor]:
        with self._switched_off():
            return answer_states(self.policy, batch, layers)

    @contextmanager
    def _switched_off(self) -> Iterator[None]:
        """Adapters off and eval mode; afterwards each part is as it was."""
        training = [each for each in self._modules if each.training]
        active = [each for each in self._adapted if not each.disable_adapters]
        try:
            _switch(training, active, on=False)
            assert all(each.disable_adapters for each in self._adapted)
            yield
        finally:
            _switch(training, active, on=True)


def _switch(modules: list[nn.Module], adapted: list[Any], on: bool) -> None:
    for module in modules:
        module.training = on
    for layer in adapted:
        # Not by enable_adapters(), which turns every matrix's requires_grad as well, between forward and backward.
        layer._disable_adapters = not on
