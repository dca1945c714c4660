"""Decoder layers that torch.compile has made one kernel of many of; training alone uses them so."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dipo_pl.errors import InputError, short_message
from dipo_pl.models.hidden_states import decoder_layers


def compile_layers(model: PreTrainedModel, device: torch.device) -> None:
    """Have torch.compile compile each decoder layer, in place: names of weights and copies of the model are as before.

    Layers of a kind share their graphs, and so do batches of all shapes but those of a single row: a run has a few graphs,
    torch's limit is eight, and what is beyond it runs as it is. Compilation takes seconds to minutes, in the first steps.

    Args:
        model: a causal language model.
        device: where it will be.

    Raises:
        InputError: torch.compile does not work on the device, for example for lack of a C++ compiler.
    """
    try:
        torch.compile(_twice, dynamic=True)(torch.ones(3, device=device))
    except Exception as error:
        raise InputError(
            f"model.policy.compile is true, and torch.compile does not work here ({short_message(error)}): install a C++ "
            "compiler (g++), or leave it out"
        ) from error
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)


def uncompiled() -> AbstractContextManager[Any]:
    """Return a context in which compiled layers run as they are written: shapes and caches of evaluation need no graphs."""
    context: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return context


def _twice(values: Tensor) -> Tensor:
    return values * 2
