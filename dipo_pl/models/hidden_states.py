"""Hidden states of a language model at the positions that predict answer tokens, of the last or of any other layer."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from dipo_pl.batch import Batch
from dipo_pl.errors import InputError

# Number of a decoder layer, counted from 0, or, as a float, the share of layers before it; None is the input of the
# output head.
Layer = int | float | None


def decoder_of(model: Any) -> Any:
    """Return the model without its output head."""
    embedding = model.get_input_embeddings()
    # Llama 4 says that its decoder is the whole model, and ModernBERT that it is the last matrix.
    parts = (part for part in (model.get_decoder(), *model.children()) if part is not model)
    return next(part for part in parts if any(each is embedding for each in part.modules()))


def decoder_states(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, **options: Any
) -> Tensor:
    """Return the last hidden states, [B, T, d]: the model without its output head."""
    decoder = decoder_of(model)
    states = decoder(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options
    ).last_hidden_state
    assert isinstance(states, Tensor)
    return states


def answer_states(
    model: PreTrainedModel, batch: Batch, layers: Collection[Layer] = (None,)
) -> dict[Layer, Tensor]:
    """Return the hidden states of each layer at the answer positions of a batch, [N, d], from one forward pass.

    Raises:
        InputError: the model has no such layer.
    """
    with _recorded(model, [layer for layer in layers if layer is not None]) as states:
        states[None] = decoder_states(model, batch.input_ids, batch.attention_mask)
    return {layer: states[layer].flatten(0, 1).index_select(0, batch.positions) for layer in layers}


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the layers of the decoder of any architecture."""
    decoder = decoder_of(model)
    config: Any = model.config.get_text_config()
    lists = [each for each in decoder.children() if isinstance(each, nn.ModuleList)]
    return next(each for each in lists if len(each) == config.num_hidden_layers)


def layer_number(model: PreTrainedModel, layer: int | float) -> int:
    """Return the number of a layer of the decoder, which may be given as the share of layers before it.

    Raises:
        InputError: the model has no such layer.
    """
    count = len(decoder_layers(model))
    number = int(layer * count) if isinstance(layer, float) else layer
    if not 0 <= number < count:
        raise InputError(
            f"a loss acts on layer {layer}, and {type(model).__name__} has layers 0 to {count - 1}: "
            "set its `layer`"
        )
    return number


def decoder_layer(model: PreTrainedModel, layer: int | float) -> nn.Module:
    """Return one layer of the decoder; arguments and errors are those of `layer_number`."""
    return decoder_layers(model)[layer_number(model, layer)]


@contextmanager
def _recorded(model: PreTrainedModel, layers: Collection[int | float]) -> Iterator[dict[Layer, Tensor]]:
    states: dict[Layer, Tensor] = {}
    hooks = []
    for layer in layers:
        # The hook only keeps a reference: under gradient checkpointing it also runs when the layer is recomputed.
        def record(module: nn.Module, inputs: Any, output: Any, layer: Layer = layer) -> None:
            states[layer] = output[0] if isinstance(output, tuple) else output

        hooks.append(decoder_layer(model, layer).register_forward_hook(record))
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
