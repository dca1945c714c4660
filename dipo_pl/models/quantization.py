"""Quantization of a model's weights, to measure whether it brings back what was forgotten."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dipo_pl.errors import InputError

Quantization = Literal["int8", "int4", "nf4"]
# Inputs of a row that share a scale, of int4 and of nf4.
GROUP, NORMAL_GROUP = 32, 64


@torch.no_grad()
def quantize(model: PreTrainedModel, kind: Quantization) -> None:
    r"""Round the weights of all linear layers except the output head, in place.

        int8, int4:   w = s q,   q = clip(round(w / s), -2^(b-1), 2^(b-1) - 1),   s = 2 max|w| / (2^b - 1)
        nf4:          w = s q,   q the nearest of the 16 numbers of `normal_levels` to w / s,   s = max|w|

    with one scale s for each row of W for int8 (b = 8), for every 32 inputs of a row for int4 (b = 4), and for every 64 for
    nf4. torchao rounds to integers. Embeddings, the output head (often tied to the embeddings), norms, biases and
    activations are not quantized. Each layer then holds the values s q, computed in float32, in its own dtype and on any
    device: this measures the effect of rounding and saves no memory.

    Source: round-to-nearest is the simplest of the schemes that arXiv:2410.16454 finds to bring forgotten text back; nf4 is
    QLoRA's, arXiv:2305.14314. Differs: its scales are not quantized themselves, and its blocks do not run over the end of a
    row.

    Args:
        model: modified in place.
        kind: `int8`, `int4` or `nf4`.

    Raises:
        InputError: torchao is not installed, or the model has weight matrices outside of linear layers.
    """
    for module in linear_layers(model, "quantized"):
        # The layers of GPT-2 hold the transpose of W.
        transposed = isinstance(module, Conv1D)
        weight: Tensor = module.weight.data
        rounded = _rounded(weight.T if transposed else weight, kind)
        weight.copy_(rounded.T if transposed else rounded)


def linear_layers(model: PreTrainedModel, changed: str) -> list[Any]:
    """Return the linear layers except the output head; `changed` says in an error what they were to be.

    Raises:
        InputError: the model has weight matrices outside of linear layers, or no linear layers.
    """
    head = model.get_output_embeddings()
    kept = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)} | {id(head.weight)}
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in kept
    ]
    known = kept | {id(each.weight) for each in layers}
    # A half-quantized model, such as one with experts in one tensor, says nothing about quantization.
    others = [name for name, each in model.named_parameters() if each.ndim > 1 and id(each) not in known]
    if others or not layers:
        reason = f"{others[0]} is not the weight of a linear layer" if others else "it has no linear layers"
        raise InputError(f"{type(model).__name__} cannot be {changed} here: {reason}")
    return layers


def normal_levels() -> Tensor:
    r"""Return the 16 numbers of NF4, [16] float64, from -1 to 1: quantiles of a normal distribution.

    With Q the quantile function and o = 0.9677083, the shares are 8 evenly spaced ones from o to 1/2, which is left out,
    and negative 7 of the same kind; 0 is in between, and all are divided by Q(o).

    Source: QLoRA, arXiv:2305.14314, section 3, as bitsandbytes computes them.
    """
    # Half a second, which commands that compute nothing need not wait.
    from scipy.stats import norm

    positive, negative = (norm.ppf(np.linspace(0.9677083, 0.5, count)[:-1]) for count in (9, 8))
    levels = np.sort(np.concatenate([positive, [0.0], -negative]))
    return torch.from_numpy(levels / np.abs(levels).max())


def _rounded(weight: Tensor, kind: Quantization) -> Tensor:
    """Return [out, in] weights of any dtype in float32, each value one of 2^b multiples of its scale."""
    if kind == "nf4":
        return _rounded_to_normal(weight.float())
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


def _rounded_to_normal(weight: Tensor) -> Tensor:
    outputs, inputs = weight.shape
    padded = nn.functional.pad(weight, (0, -inputs % NORMAL_GROUP)).view(outputs, -1, NORMAL_GROUP)
    scales = padded.abs().amax(-1, keepdim=True)
    levels = normal_levels().to(weight)
    middles = (levels[1:] + levels[:-1]) / 2
    # A block of zeros has no scale.
    nearest = torch.bucketize(padded / scales.where(scales > 0, 1.0), middles)
    return (levels[nearest] * scales).view(outputs, -1)[:, :inputs]


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
