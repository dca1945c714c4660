"""References of a tiny model on a few sequences, of which they are given the states."""

import random
from contextlib import nullcontext
from pathlib import Path

import torch
from tiny_models import tiny_model

from dipo_pl.batch import Encoded, collate
from dipo_pl.references.base import ReferenceContext
from dipo_pl.references.frozen_copy import FrozenCopy
from dipo_pl.references.stored_states import StoredStates

IDENTITY = {"tokenizer": "t" * 64, "prompt format": "p" * 64, "forget rows": "f" * 64}
LENGTHS = {
    "forget": [(9, 4), (12, 3), (5, 1), (9, 8), (20, 6)],
    "retain": [(7, 2), (16, 9), (9, 3), (3, 1), (30, 11), (11, 5), (12, 6)],
}


def model(kind="llama", **options):
    return tiny_model(kind, **options).train()


def encoded(length, answer_start, seed=0):
    return Encoded(tuple(random.Random(seed).choices(range(61), k=length)), answer_start)


def sequences(*names):
    return {
        name: [encoded(*each, seed=100 * place + row) for row, each in enumerate(LENGTHS[name])]
        for place, name in enumerate(LENGTHS)
        if name in (names or LENGTHS)
    }


def attached(folder, policy=None, reference=None, arguments=None, **changes):
    """32 tokens at a time are six batches of these sequences."""
    reference = reference or StoredStates(**{"batch_tokens": 32} | (arguments or {}))
    given = {
        "layers": {None}, "sequences": sequences(), "identity": IDENTITY, "folder": Path(folder),
        "device": torch.device("cpu"), "precision": nullcontext, "rank": 0, "world_size": 1, "barrier": lambda: None,
    }  # fmt: skip
    reference.attach(policy or model(), ReferenceContext(**given | changes))
    return reference


def frozen_copy(policy, **changes):
    return attached("", policy, FrozenCopy(), **changes)


def batch(given=None, **rows):
    """Return a batch of some rows of each section."""
    given = given or sequences()
    rows = rows or {name: range(len(each)) for name, each in given.items()}
    chosen = {name: [given[name][row] for row in each] for name, each in rows.items()}
    return collate(chosen, [row for each in rows.values() for row in each])


FULL = batch()


def contents(folder):
    """Return every file and folder with its content and time of change."""
    return {
        path.relative_to(folder): (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in Path(folder).rglob("*")
    }


def data(folder):
    return {path.name: path.read_bytes() for path in (folder / "reference").iterdir()}


SHARD = "retain-000004.safetensors"  # of the longest sequence


def count_forwards(policy):
    calls = []
    policy.get_decoder().register_forward_hook(lambda *_: calls.append(1))
    return calls
