"""Quantization of a model's weights, to measure whether it brings back what was forgotten."""

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
    r"""Round the weights of all linear layers except the output head to integers, in place, with torchao.

        w = s q,   q = clip(round(w / s), -2^(b-1), 2^(b-1) - 1),   s = 2 max|w| / (2^b - 1)

    with one scale s for each row of W for int8 (b = 8), and one for every 32 inputs of a row for int4 (b = 4).
    Embeddings, the output head (often tied to the embeddings), norms, biases and activations are not quantized. Each
    layer then holds the values s q, computed in float32, in its own dtype and on any device: this measures the effect
    of rounding and saves no memory.

    Source: round-to-nearest is the simplest of the schemes that arXiv:2410.16454 finds to bring forgotten text back.

    Args:
        model: modified in place.
        kind: number of bits, `int8` or `int4`.

    Raises:
        InputError: torchao is not installed, or the model has weight matrices outside of linear layers.
    """
    head = model.get_output_embeddings()
    kept = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)} | {id(head.weight)}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in kept
    }
    known = kept | {id(each.weight) for each in layers.values()}
    # For example experts in one tensor: a half-quantized model says nothing about quantization.
    others = [name for name, each in model.named_parameters() if each.ndim > 1 and id(each) not in known]
    if others or not layers:
        reason = f"{others[0]} is not the weight of a linear layer" if others else "it has no linear layers"
        raise InputError(f"{type(model).__name__} cannot be quantized here: {reason}")
    for module in layers.values():
        # The layers of GPT-2 hold the transpose of W.
        transposed = isinstance(module, Conv1D)
        weight = module.weight.data
        rounded = _rounded(weight.T if transposed else weight, kind)
        weight.copy_(rounded.T if transposed else rounded)


def _rounded(weight: Tensor, kind: Quantization) -> Tensor:
    """Return [out, in] weights of any dtype in float32, each value one of 2^b multiples of its scale."""
    quantize_, config = _torchao(kind)
    outputs, inputs = weight.shape
    # Zeros that fill the last group do not change a scale.
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
