"""The floor: a step's matrix products and nothing else, with the shapes and in the order of a step."""

from dataclasses import dataclass

import torch
from sizes import Size
from torch import Tensor

# Larger groups of positions gain nothing, and their logits take more memory.
GROUP = 256


@dataclass(frozen=True)
class Floor:
    """What `Size.flops` counts, as bare products: a decoder's on all tokens, a head's where an answer is predicted.

    Attributes:
        sets: of rows.
        lora: weights are frozen, and their gradients not computed.
    """

    sets: int
    lora: bool

    @property
    def key(self) -> str:
        return f"floor, {self.sets} sets{', LoRA' if self.lora else ''}"


class Products:
    """Weights, and memory for what is multiplied. Outputs are written over each other; gradients of weights are kept."""

    def __init__(self, floor: Floor, size: Size) -> None:
        tokens = floor.sets * size.rows * size.time
        self.answers = floor.sets * size.rows * (size.time - size.prompt)
        options = {"dtype": size.dtype, "device": size.device}
        self.layers = [_matrices(size.layer_weights, floor.lora, options) for _ in range(size.layers)]
        (self.head,) = _matrices([(size.vocabulary, size.width)], floor.lora, options)
        widths = {side for shape in size.layer_weights for side in shape}
        self.inputs = {width: _filled((tokens, width), options) for width in widths}
        self.outputs = {width: _filled((tokens, width), options) for width in widths}
        self.logits = _filled((GROUP, size.vocabulary), options)

    def step(self) -> None:
        for layer in self.layers:
            for weight, _ in layer:
                out, into = weight.shape
                torch.mm(self.inputs[into], weight.t(), out=self.outputs[out])
        weight, gradient = self.head
        states, by_states = (each[weight.shape[1]] for each in (self.inputs, self.outputs))
        for start in range(0, self.answers, GROUP):
            group = slice(start, min(start + GROUP, self.answers))
            logits = torch.mm(states[group], weight.t(), out=self.logits[: group.stop - start])
            torch.mm(logits, weight, out=by_states[group])
            if gradient is not None:
                gradient.addmm_(logits.t(), states[group])
        for layer in reversed(self.layers):
            for weight, gradient in reversed(layer):
                out, into = weight.shape
                torch.mm(self.inputs[out], weight, out=self.outputs[into])
                if gradient is not None:
                    torch.mm(self.inputs[out].t(), self.inputs[into], out=gradient)


def _matrices(
    shapes: list[tuple[int, int]], frozen: bool, options: dict
) -> list[tuple[Tensor, Tensor | None]]:
    """Weights, each with room for its gradient."""
    return [(_filled(shape, options), None if frozen else _filled(shape, options)) for shape in shapes]


def _filled(shape: tuple[int, int], options: dict) -> Tensor:
    # Not zeros, whose memory would be one page until it is written to.
    return torch.full(shape, 0.01, **options)
