"""Passes through the upper layers of a decoder alone, from states that are put in as the output of one of its layers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dipo_pl.batch import Batch, Encoded, collate
from dipo_pl.errors import InputError, short_message
from dipo_pl.models.answer_scores import answer_scores
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import decoder_layers, decoder_states


class UpperLayers:
    """Decoder that has processed a batch once, and can go on from any of its layers with other states.

    Layers up to that one are not computed again. Everything else, such as positions, masks and the last norm, is done
    by the decoder itself, so that it need not be known here.

    Args:
        model: a causal language model in eval mode, not sharded.
        batch: the sequences.

    Attributes:
        outputs: for each layer its output, [B, T, d].
    """

    def __init__(self, model: PreTrainedModel, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.layers = list(decoder_layers(model))
        self._made: list[Any] = []
        hooks = [
            each.register_forward_hook(lambda module, inputs, output: self._made.append(output))
            for each in self.layers
        ]
        try:
            self.last = decoder_states(model, batch.input_ids, batch.attention_mask)
        finally:
            for hook in hooks:
                hook.remove()
        self.outputs: list[Tensor] = [each[0] if isinstance(each, tuple) else each for each in self._made]

    def last_states(self, number: int, states: Tensor) -> Tensor:
        """Return the decoder's last states, [B, T, d], after `states`, [B, T, d], are put in as the output of a layer."""
        given: list[Any] = list(self._made[: number + 1])
        whole = given[number]
        given[number] = (states, *whole[1:]) if isinstance(whole, tuple) else states
        with _returning(self.layers, given):
            return decoder_states(self.model, self.batch.input_ids, self.batch.attention_mask)

    def at_positions(self, states: Tensor) -> Tensor:
        """Return the states, [B, T, d], at the positions that predict answer tokens, [N, d]."""
        return states.flatten(0, 1).index_select(0, self.batch.positions)

    def with_positions(self, number: int, states: Tensor) -> Tensor:
        """Return a layer's output, [B, T, d], with `states`, [N, d], at the positions that predict answer tokens."""
        own = self.outputs[number]
        replaced = own.flatten(0, 1).index_copy(0, self.batch.positions, states.to(own.device, own.dtype))
        return replaced.view_as(own)


@torch.no_grad()
def position_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the output of every layer at the positions that predict answer tokens, [L, N, d], from one pass."""
    upper = UpperLayers(model, batch)
    return torch.stack([upper.at_positions(each) for each in upper.outputs])


@torch.no_grad()
def patched_log_probabilities(
    model: PreTrainedModel, batch: Batch, patches: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean log p of the answer tokens, as the model is and with the states of other models in its layers.

    Args:
        model: a causal language model in eval mode.
        batch: S sequences.
        patches: by name, states of another model as of `position_states`, [L, N, d].

    Returns:
        [S] float64, nats per token, of the model itself; by name [S, L] float64, where in column l the output of layer l
        at the positions that predict answer tokens is that of the other model.
    """
    upper, head = UpperLayers(model, batch), OutputHead.of(model)

    def log_probabilities(last: Tensor) -> Tensor:
        nll, _ = answer_scores(upper.at_positions(last), batch.targets, batch.lengths, head)
        return -nll.double().cpu()

    found = {
        name: torch.stack(
            [
                log_probabilities(upper.last_states(number, upper.with_positions(number, each)))
                for number, each in enumerate(states)
            ],
            dim=1,
        )
        for name, states in patches.items()
    }
    return log_probabilities(upper.last), found


@torch.no_grad()
def lens_probabilities(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the mean probability of the answer tokens that each layer's output has by itself: the logit lens.

    A layer's output is put through the decoder's last norm and the output head, as if no layer followed.

    Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.

    Args:
        model: a causal language model in eval mode.
        batch: S sequences.

    Returns:
        [S, L] float64.
    """
    upper, head = UpperLayers(model, batch), OutputHead.of(model)
    columns = []
    for each in upper.outputs:
        states = upper.at_positions(upper.last_states(len(upper.layers) - 1, each))
        _, tokens = answer_scores(states, batch.targets, batch.lengths, head)
        answers = tokens.log_probabilities.double().exp().split(list(batch.lengths))
        columns.append(torch.stack([answer.mean() for answer in answers]).cpu())
    return torch.stack(columns, dim=1)


@torch.no_grad()
def check_layers(model: PreTrainedModel) -> None:
    """Refuse an architecture whose layers hand on more than their outputs.

    On a few tokens, going on from each layer with its own output must give the states of the whole pass.

    Raises:
        InputError: it does not, or the layers cannot be found.
    """
    name = type(model).__name__
    rows = model.get_input_embeddings().weight.shape[0]
    sequences = [Encoded(tuple(token % rows for token in range(1, 1 + length)), 2) for length in (5, 3)]
    batch = collate({"answers": sequences}, range(2)).to(model.get_input_embeddings().weight.device)
    try:
        upper = UpperLayers(model, batch)
        if len(upper.outputs) != len(upper.layers):
            raise ValueError(f"{len(upper.outputs)} outputs of {len(upper.layers)} layers")
        ends = [upper.last_states(number, each) for number, each in enumerate(upper.outputs)]
        moved = upper.last_states(len(upper.layers) - 1, upper.outputs[0])
    except Exception as error:
        raise InputError(
            f"{name} cannot be started from one of its layers ({short_message(error)}): leave UnlearningDepth and LogitLens "
            "out of the attacks"
        ) from error
    tolerance = 1e-3 if upper.last.dtype == torch.float32 else 0.05
    scale = float(upper.last.abs().max())
    real = batch.attention_mask
    if not all(torch.allclose(each[real], upper.last[real], rtol=0, atol=tolerance * scale) for each in ends):
        raise InputError(
            f"{name} gives other states when it is started from one of its layers, which hand on more than their output: "
            "leave UnlearningDepth and LogitLens out of the attacks"
        )
    if len(upper.layers) > 1 and torch.equal(moved, upper.last):
        raise InputError(
            f"{name} does not use the output of its last layer: leave UnlearningDepth and LogitLens out of the attacks"
        )


@contextmanager
def _returning(layers: Sequence[nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """Have the first layers return these outputs instead of computing theirs."""
    changed = list(zip(layers, outputs, strict=False))
    # Some libraries have replaced a layer's own function already.
    before = [vars(layer).get("forward") for layer, _ in changed]
    try:
        for layer, output in changed:
            layer.forward = _constant(output)
        yield
    finally:
        for (layer, _), own in zip(changed, before, strict=True):
            if own is not None:
                layer.forward = own
            elif "forward" in vars(layer):
                del layer.forward


def _constant(output: Any) -> Any:
    return lambda *arguments, **options: output
