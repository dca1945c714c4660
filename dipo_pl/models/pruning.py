"""Pruning of a model's weights, to measure whether it brings back what was forgotten."""

import torch
from torch.nn.utils.prune import L1Unstructured
from transformers import PreTrainedModel

from dipo_pl.errors import check_share
from dipo_pl.models.quantization import linear_layers


@torch.no_grad()
def prune(model: PreTrainedModel, share: float) -> None:
    r"""Set the smallest weights of each linear layer except the output head to 0, in place.

        w = 0 for the round(share n) of a layer's n weights with the smallest |w|

    Embeddings, norms and biases are left alone.

    Source: magnitude pruning, Han et al., arXiv:1506.02626, layer by layer, without training afterwards.

    Args:
        model: modified in place.
        share: in (0, 1).

    Raises:
        InputError: the share is none, or the model has weight matrices outside of linear layers.
    """
    check_share("share", share, one=False)
    for module in linear_layers(model, "pruned"):
        module.weight.copy_(L1Unstructured(share).prune(module.weight))
