"""Reference whose hidden states are computed once and read from disk: no second model in memory."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedModel

from dipo_pl.batch import Batch, collate
from dipo_pl.distributed import is_sharded
from dipo_pl.errors import InputError, check_count
from dipo_pl.models.adapters import weights_in_use
from dipo_pl.models.eval_mode import eval_mode
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import Layer, answer_states
from dipo_pl.paths import expanded
from dipo_pl.references.base import Reference, ReferenceContext
from dipo_pl.references.state_shards import Key, StateShards, layer_name
from dipo_pl.storage.fingerprints import configuration_fingerprint, sequences_fingerprint, weights_fingerprint
from dipo_pl.storage.run_folder import RunFolder


class StoredStates(Reference):
    """Reference that reads the hidden states of all training sequences at answer positions from files.

    The policy itself computes them before training, in one epoch of forward passes; a build that was cut short
    continues with the next shard. Several runs may share the files, which are refused where model, precision,
    tokenizer or sequences differ. Only an output head is kept in memory, and not even that where the head of the
    policy is frozen, as with LoRA.

    Args:
        path: folder of the files; null is `reference/` in the run folder.
        dtype: data type on disk; null is lossless: the data type in which the model computes, and under autocast
            that to which states are rounded before the output head.
        batch_tokens: tokens of a forward pass, padding included, at least 1; each pass makes a shard.

    Raises:
        InputError: `batch_tokens` is below 1.
    """

    def __init__(
        self,
        path: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        batch_tokens: int = 8192,
    ) -> None:
        check_count("StoredStates.batch_tokens", batch_tokens)
        self.path = path
        self.dtype = dtype
        self.batch_tokens = batch_tokens
        self._shards: StateShards | None = None
        self._head: OutputHead | None = None
        self._policy: PreTrainedModel | None = None

    def attach(self, policy: PreTrainedModel, context: ReferenceContext) -> None:
        """Compute the states that are not on disk yet, and copy the output head of the policy if it is trained.

        Raises:
            InputError: the folder holds states of another reference or damaged ones, or states are not finite.
            WriteError: states cannot be written.
        """
        # Lightning calls this with the GPU as default device.
        with torch.device("cpu"):
            self._shards = self._complete(policy, context)
        head = OutputHead.of(policy)
        is_trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
        if is_trained and None in context.layers:
            self._head = head.map(lambda tensor: tensor.detach().to(context.device, copy=True))
        else:
            self._policy = policy

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Move or cast the copied head."""
        if self._head is not None:
            self._head = self._head.map(function)

    @property
    def head(self) -> OutputHead:
        """Output head of the policy before training: the policy's own if it is frozen, or if no loss uses logits.

        Raises:
            RuntimeError: `attach` has not been called.
        """
        if self._policy is not None:
            return OutputHead.of(self._policy)
        if self._head is None:
            raise RuntimeError("StoredStates is used before attach() has given it a head")
        return self._head

    def states(self, batch: Batch, layers: Collection[Layer] = (None,)) -> dict[Layer, Tensor]:
        """Return the hidden states of each layer at the answer positions of a batch, [N, d].

        Raises:
            InputError: the batch has sequences that were not among the training sequences.
            RuntimeError: `attach` has not been called.
        """
        if self._shards is None:
            raise RuntimeError("StoredStates is used before attach() has given it states")
        return self._shards.read(batch, layers)

    def _complete(self, policy: PreTrainedModel, context: ReferenceContext) -> StateShards:
        folder = RunFolder(context.folder).reference if self.path is None else Path(expanded(self.path))
        lengths = {name: [each.answer_length for each in rows] for name, rows in context.sequences.items()}
        shards = StateShards(folder, self._fingerprints(policy, context), lengths)
        shards.load()
        missing = shards.missing()
        # All ranks have read the folder before one of them writes.
        context.barrier()
        if missing:
            self._compute(policy, context, shards, missing)
        context.barrier()
        shards.load()
        if shards.missing():
            raise InputError(
                f"rank {context.rank} does not find the files that other ranks wrote to {folder}: set "
                "model.reference.path to a folder that all ranks share"
            )
        if context.rank == 0:
            shards.finish()
        rank_zero_info(f"the reference states are read from {folder}")
        return shards

    def _fingerprints(self, policy: PreTrainedModel, context: ReferenceContext) -> dict[str, str]:
        with context.precision():
            autocast, default = _autocast_dtype(context.device), torch.get_default_dtype()
        return {
            "model": weights_fingerprint(weights_in_use(policy)),
            "model configuration": configuration_fingerprint(policy.config),
            "precision": f"{autocast} autocast" if autocast else str(default),
            **{f"{layer_name(each)} states": self.dtype or "lossless" for each in context.layers},
            **context.identity,
            **{f"{name} sequences": sequences_fingerprint(rows) for name, rows in context.sequences.items()},
        }

    def _compute(
        self, policy: PreTrainedModel, context: ReferenceContext, shards: StateShards, missing: list[Key]
    ) -> None:
        sequences = {(name, row): context.sequences[name][row] for name, row in missing}
        batches = self._batches({key: len(each.ids) for key, each in sequences.items()})
        turns = range(0, len(batches), context.world_size)
        with _inference(policy, context):
            for start in tqdm(turns, "reference states", unit="batch", disable=context.rank > 0):
                turn = batches[start : start + context.world_size]
                is_own = context.rank < len(turn)
                # A sharded model needs all ranks in each forward pass, also those for which no batch is left.
                if is_own or is_sharded(policy):
                    keys = turn[context.rank if is_own else 0]
                    batch = collate({"": [sequences[key] for key in keys]}, range(len(keys)))
                    states = answer_states(policy, batch.to(context.device), context.layers)
                if is_own:
                    shards.write(keys, {layer: self._rounded(layer, each) for layer, each in states.items()})

    def _batches(self, lengths: Mapping[Key, int]) -> list[list[Key]]:
        """Return the sequences of each forward pass, the longest first, so that a lack of memory shows at once.

        The number of sequences in a batch depends on its longest one only: a build that continues has the batches
        that were left of the one that was cut short, and gets bitwise equal states.
        """
        batches: list[list[Key]] = []
        width = 0
        for key in sorted(lengths, key=lambda key: -lengths[key]):
            if not batches or (len(batches[-1]) + 1) * width > self.batch_tokens:
                batches.append([])
                width = lengths[key]
            batches[-1].append(key)
        return batches

    def _rounded(self, layer: Layer, states: Tensor) -> Tensor:
        # Under autocast the output head rounds its input anyway.
        autocast = _autocast_dtype(states.device) if layer is None else None
        return states.to(getattr(torch, self.dtype) if self.dtype else autocast or states.dtype)


@contextmanager
def _inference(policy: PreTrainedModel, context: ReferenceContext) -> Iterator[None]:
    """Have the policy compute as it will in the run, but in eval mode and without gradients."""
    with torch.no_grad(), context.precision(), eval_mode(policy):
        policy.to(context.device)
        # Under true half or double precision Lightning converts the weights later than this.
        if torch.get_default_dtype() != torch.float32:
            policy.to(torch.get_default_dtype())
        yield


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
