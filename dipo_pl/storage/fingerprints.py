"""Fingerprints of rows, weights and what makes sequences of rows: equal exactly where the content is equal."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from dipo_pl.distributed import full_tensor
from dipo_pl.rows import Row


def rows_fingerprint(rows: Iterable[Row]) -> str:
    """SHA-256 of all texts of the rows, in order, but for alternate answers, which few losses look at."""
    return _digest([row.messages, row.answer, row.paraphrased_answer, row.wrong_answers] for row in rows)


def texts_fingerprint(groups: Iterable[Sequence[str]]) -> str:
    """SHA-256 of the texts of all groups, in order."""
    return _digest(groups)


def _digest(records: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 of all parameters by name, dtype, shape and bytes. Of a model in shards all ranks must ask."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        tensor = full_tensor(parameter).detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of all that makes a text's ids: the fast tokenizer itself, its chat template and its EOS."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # These two are of the latest call, not of the tokenizer.
    del backend["padding"], backend["truncation"]
    return _digest([backend, tokenizer.chat_template, tokenizer.eos_token])


def settings_fingerprint(part: object) -> str:
    """SHA-256 of an object's class and attributes."""
    return hashlib.sha256(
        json.dumps(_described(part), sort_keys=True, default=_described).encode()
    ).hexdigest()


def _described(part: object) -> list[Any]:
    kind = type(part)
    return [f"{kind.__module__}.{kind.__qualname__}", vars(part) if hasattr(part, "__dict__") else repr(part)]
