"""Weights of a model that are trained, chosen by patterns of their names; all others are frozen."""

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from torch import nn
from transformers import PreTrainedModel

from dipo_pl.errors import InputError
from dipo_pl.models.hidden_states import Layer, decoder_layers, layer_number


def check_patterns(patterns: Sequence[str]) -> None:
    """Refuse what cannot be patterns of names.

    Raises:
        InputError: there are none, or one is not a regular expression.
    """
    if isinstance(patterns, str) or not patterns:
        raise InputError(
            f"model.trainable must be a list of regular expressions of weight names (got {patterns!r}): leave it out to "
            "train all weights"
        )
    for each in patterns:
        try:
            re.compile(each)
        except re.error as error:
            raise InputError(f"model.trainable: '{each}' is not a regular expression ({error})") from error


def train_only(model: PreTrainedModel, patterns: Sequence[str]) -> str:
    """Freeze, in place, all weights of a model but those whose whole name a pattern matches.

    A weight that several modules share is trained if any of its names matches.

    Args:
        model: a model without adapters, not sharded; its parameters may be on the meta device.
        patterns: regular expressions of names as `model.named_parameters()` gives them, such as
            `model.layers.5.mlp.down_proj.weight`.

    Returns:
        One line that says how many weights are trained, and which share of all parameters they hold.

    Raises:
        InputError: a pattern matches no weight.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    matched = {each: _matches(model, each) for each in patterns}
    for pattern, names in matched.items():
        if not names:
            near = get_close_matches(pattern, named, n=3, cutoff=0.0)
            raise InputError(
                f"model.trainable: '{pattern}' matches no weight of {type(model).__name__}, whose names are such as "
                f"{', '.join(near)}: give a regular expression of a whole name"
            )
    trained = {id(named[name]) for names in matched.values() for name in names}
    for each in model.parameters():
        each.requires_grad_(id(each) in trained)
    sizes = {id(each): each.numel() for each in named.values()}
    count = sum(sizes[each] for each in trained)
    found = ", ".join(f"{pattern} ({len(names)})" for pattern, names in matched.items())
    return (
        f"model.trainable: {len(trained)} of {len(sizes)} weights are trained, with {count:,} of {sum(sizes.values()):,} "
        f"parameters ({count / sum(sizes.values()):.1%}), and the others are frozen; weights by pattern: {found}"
    )


def check_reached(model: PreTrainedModel, patterns: Sequence[str], layers: Collection[Layer]) -> None:
    """Refuse a pattern of weights that cannot move, since all losses act on hidden states before them.

    Args:
        model: as in `train_only`.
        patterns: as in `train_only`.
        layers: the layers whose hidden states losses use; None is the output head's input, which all weights reach.

    Raises:
        InputError: a pattern matches only weights behind the last of these layers.
    """
    numbers = [layer_number(model, each) for each in layers if each is not None]
    if None in layers or not numbers:
        return
    behind: list[nn.Module] = [*decoder_layers(model)[max(numbers) + 1 :], model.get_output_embeddings()]
    tied = {id(each) for each in model.get_input_embeddings().parameters()}
    unreached = {id(each) for module in behind for each in module.parameters()} - tied
    named = dict(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        if all(id(named[name]) in unreached for name in _matches(model, pattern)):
            raise InputError(
                f"model.trainable: '{pattern}' matches only weights behind layer {max(numbers)}, which the losses do not "
                f"reach, so that they cannot change: give weights of layers 0 to {max(numbers)}, or other losses"
            )


def _matches(model: PreTrainedModel, pattern: str) -> list[str]:
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))
    return [name for name in names if re.fullmatch(pattern, name)]
