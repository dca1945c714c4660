"""A model's weights rounded to few bits, to see whether what was forgotten comes back."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dipo_pl.errors import InputError

Quantization = Literal["int8", "int4"]
GROUP = 32


@torch.no_grad()
def quantize(model: PreTrainedModel, kind: Quantization) -> None:
    r"""Rounds the weights of all linear layers but the output head to integers, in place, by torchao.

        w = s q,   q = clip(round(w / s), -2^(b-1), 2^(b-1) - 1),   s = 2 max|w| / (2^b - 1)

    with one scale s a row of W for int8 (b = 8), and one for every 32 inputs of a row for int4 (b = 4).
    Embeddings, the output head (often the embeddings themselves), norms and biases stay as they are, and so do
    activations. Each layer then holds the numbers s q, computed in float32, in its own dtype and on any device: what
    is measured is the rounding, and no memory is saved. Round-to-nearest is the simplest of the schemes that
    arXiv:2410.16454 finds to bring forgotten text back.

    Raises:
        InputError: torchao is not installed, or the model has weights that are no linear layer's.
    """
    head = model.get_output_embeddings()
    kept = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)} | {id(head.weight)}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in kept
    }
    known = kept | {id(each.weight) for each in layers.values()}
    # Experts held in one tensor, say: a model half of which is rounded says nothing about rounding.
    others = [name for name, each in model.named_parameters() if each.ndim > 1 and id(each) not in known]
    if others or not layers:
        raise InputError(
            f"{type(model).__name__} cannot be quantised here: {others[0] if others else 'none of its weights'} is "
            f"{'no' if others else 'a'} linear layer's weight"
        )
    for module in layers.values():
        # GPT-2's layers hold the transpose of W.
        transposed = isinstance(module, Conv1D)
        weight = module.weight.data
        rounded = _rounded(weight.T if transposed else weight, kind)
        weight.copy_(rounded.T if transposed else rounded)


def _rounded(weight: Tensor, kind: Quantization) -> Tensor:
    """[out, in] of any dtype -> the same in float32, each number one of 2^b multiples of its scale."""
    quantize_, config = _torchao(kind)
    outputs, inputs = weight.shape
    # Zeros fill up the last group, and move no scale.
    padded = nn.functional.pad(weight.float(), (0, -inputs % GROUP)).contiguous()
    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.weight = nn.Parameter(padded, requires_grad=False)
    quantize_(layer, config)
    quantized: Any = layer.weight
    values: Tensor = quantized.dequantize()[:outputs, :inputs]
    return values


def _torchao(kind: Quantization) -> tuple[Any, Any]:
    try:
        from torchao.quantization import IntxWeightOnlyConfig, PerAxis, PerGroup, quantize_
    except ImportError as error:
        raise InputError(
            f"model.policy.quantization needs torchao ({error}): pip install 'dipo-pl[quantize]'"
        ) from error
    if kind == "int8":
        return quantize_, IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
    int4: torch.dtype = torch.int4  # type: ignore[attr-defined]
    return quantize_, IntxWeightOnlyConfig(weight_dtype=int4, granularity=PerGroup(GROUP))
