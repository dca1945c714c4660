"""The step schemes as a float64 loop over whole logits that shares no code with the package."""

import copy
import math
from dataclasses import dataclass, field

import torch
from loss_definitions import DEFINITIONS, Definition
from torch import Tensor
from transformers import PreTrainedModel

from dipo_pl.batch import Batch

Gradient = dict[str, Tensor]


@dataclass
class Loop:
    """SGD with momentum on two losses.

    Attributes:
        scheme: joint, sam or gru.
        forget, retain: names of definitions; no retain loss is "".
        rho: of sam.
    """

    scheme: str
    start: PreTrainedModel
    forget: str
    retain: str
    retain_weight: float
    rate: float
    momentum: float
    rho: float = 0.0
    clip: float | None = None
    losses: list[float] = field(default_factory=list)
    gradients: list[Gradient] = field(default_factory=list)
    weights: list[Gradient] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)

    def run(self, batches: list[Batch], accumulate: int) -> "Loop":
        model, reference = (copy.deepcopy(self.start).double() for _ in range(2))
        velocity: Gradient = {}
        for first in range(0, len(batches), accumulate):
            some = batches[first : first + accumulate]
            gradient = self.gradient(model, reference, some)
            self.gradients.append(gradient)
            norm = length(gradient)
            factor = 1.0 if self.clip is None else min(1.0, self.clip / (norm + 1e-6))
            for name, weight in model.named_parameters():
                velocity[name] = self.momentum * velocity.get(name, 0.0) + factor * gradient[name]
                weight.data -= self.rate * velocity[name]
            self.weights.append({name: each.detach().clone() for name, each in model.named_parameters()})
        return self

    def gradient(self, model: PreTrainedModel, reference: PreTrainedModel, some: list[Batch]) -> Gradient:
        forget = self.mean_gradient(model, reference, some, "forget", self.forget)
        retain = {name: torch.zeros_like(each) for name, each in forget.items()}
        if self.retain:
            retain = self.mean_gradient(model, reference, some, "retain", self.retain)
        for batch in some:
            value = self.value(model, reference, batch, "forget", self.forget)
            if self.retain:
                value = value + self.retain_weight * self.value(
                    model, reference, batch, "retain", self.retain
                )
            self.losses.append(float(value))
        if self.scheme == "sam":
            moved, size = copy.deepcopy(model), length(forget)
            for name, weight in moved.named_parameters():
                weight.data += self.rho * forget[name] / size
            forget = self.mean_gradient(moved, reference, some, "forget", self.forget)
        if self.scheme == "gru":
            overlap = sum(float((forget[name] * retain[name]).sum()) for name in forget)
            sizes = length(forget) * length(retain)
            self.cosines.append(overlap / sizes if sizes else 0.0)
            if overlap < 0:
                share = overlap / length(retain) ** 2
                forget = {name: each - share * retain[name] for name, each in forget.items()}
        return {name: each + self.retain_weight * retain[name] for name, each in forget.items()}

    def mean_gradient(
        self, model: PreTrainedModel, reference: PreTrainedModel, some: list[Batch], section: str, loss: str
    ) -> Gradient:
        total: Gradient = {}
        for batch in some:
            value = self.value(model, reference, batch, section, loss) / len(some)
            weights = dict(model.named_parameters())
            found = torch.autograd.grad(value, [*weights.values()], materialize_grads=True, allow_unused=True)
            for name, each in zip(weights, found, strict=True):
                total[name] = total.get(name, 0.0) + each
        return total

    def value(
        self, model: PreTrainedModel, reference: PreTrainedModel, batch: Batch, section: str, loss: str
    ) -> Tensor:
        definition = DEFINITIONS[loss]
        lengths = [*batch.sections[section].lengths]
        before = 0
        for name, each in batch.sections.items():
            if name == section:
                break
            before += sum(each.lengths)
        here = slice(before, before + sum(lengths))
        z = outputs(model, batch, definition)[batch.positions[here]]
        z_ref = outputs(reference, batch, definition)[batch.positions[here]].detach()
        return definition.value(z, z_ref, batch.targets[here], lengths)[0]


def outputs(model: PreTrainedModel, batch: Batch, definition: Definition) -> Tensor:
    """Return logits, or the states of the layer that the loss acts on, of all positions in float64."""
    found = model(batch.input_ids, batch.attention_mask.long(), output_hidden_states=True)
    layer = definition.loss.layer
    return (found.logits if layer is None else found.hidden_states[layer + 1]).flatten(0, 1)


def length(gradient: Gradient) -> float:
    return math.sqrt(sum(float((each * each).sum()) for each in gradient.values()))
