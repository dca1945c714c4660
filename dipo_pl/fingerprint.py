"""Fingerprints of rows and weights: equal exactly where the content is equal."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from dipo_pl.data_modules.rows import Row


def rows_fingerprint(rows: Iterable[Row]) -> str:
    """SHA-256 of all texts of the rows, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(astuple(row), ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 of all parameters by name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of all that a fast tokenizer does to a text."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
