"""Fingerprints of rows, sequences, weights and settings: SHA-256 hashes that are equal where the content is equal."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dipo_pl.batch import Encoded
from dipo_pl.distributed import full_tensor
from dipo_pl.rows import Row

# Entries of a model configuration that do not change what the model computes.
PROVENANCE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


def rows_fingerprint(rows: Iterable[Row]) -> str:
    """Return the fingerprint of all texts of rows, in order, except alternate answers, which few losses use."""
    return _digest([row.messages, row.answer, row.paraphrased_answer, row.wrong_answers] for row in rows)


def conversation_digest(row: Row) -> bytes:
    """Return 16 bytes that are the same for two rows if their messages and answer are: BLAKE2b, RFC 7693."""
    return hashlib.blake2b(json.dumps(row.conversation, ensure_ascii=False).encode(), digest_size=16).digest()


def texts_fingerprint(groups: Iterable[Sequence[str]]) -> str:
    """Return the fingerprint of the texts of all groups, in order."""
    return _digest(groups)


def sequences_fingerprint(sequences: Iterable[Encoded]) -> str:
    """Return the fingerprint of the tokens of sequences and the start of their answers, in order."""
    return _digest([each.ids, each.answer_start] for each in sequences)


def weights_fingerprint(model: nn.Module) -> str:
    """Return the fingerprint of all parameters by name, dtype, shape and bytes. A collective if they are sharded."""
    return tensors_fingerprint((name, full_tensor(each)) for name, each in model.named_parameters())


def tensors_fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return the fingerprint that a model has whose parameters are these, in this order."""
    digest = hashlib.sha256()
    for name, each in named:
        tensor = each.detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def configuration_fingerprint(config: PreTrainedConfig) -> str:
    """Return the fingerprint of what a model configuration says about the computation."""
    values = {name: value for name, value in config.to_diff_dict().items() if name not in PROVENANCE}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the fingerprint of a fast tokenizer with its chat template and EOS token."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # These belong to the latest call, not to the tokenizer.
    del backend["padding"], backend["truncation"]
    return _digest([backend, tokenizer.chat_template, tokenizer.eos_token])


def settings_fingerprint(part: object) -> str:
    """Return the fingerprint of the class and attributes of an object."""
    return hashlib.sha256(
        json.dumps(_described(part), sort_keys=True, default=_described).encode()
    ).hexdigest()


def _digest(records: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _described(part: object) -> list[Any]:
    kind = type(part)
    return [f"{kind.__module__}.{kind.__qualname__}", vars(part) if hasattr(part, "__dict__") else repr(part)]
