"""The reference's hidden states, computed once and read from disk: no second model in memory."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedModel

from dipo_pl.batch import Batch, Encoded, collate
from dipo_pl.distributed import full_tensor, is_sharded
from dipo_pl.errors import InputError
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import Layer, answer_states
from dipo_pl.models.lora import adapted_layers
from dipo_pl.references.base import Reference, Surroundings
from dipo_pl.references.state_store import LayerFormat, Manifest, StateStore
from dipo_pl.storage.fingerprints import weights_fingerprint
from dipo_pl.storage.run_folder import RunFolder

# Of a configuration, what tells where a model came from and not what it computes.
PROVENANCE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


class StoredStates(Reference):
    """The hidden states of all training sequences at answer positions, in files that many runs may share.

    They are computed before training, by the policy itself, and keyed by all that they depend on; a run cut
    short goes on where it was. Then only the reference's head is in memory, and not even that where the
    policy's own is frozen, as with LoRA.

    Args:
        path: folder of the states; null is `reference/` in the run folder.
        dtype: of the states on disk; null is what loses nothing: as the model computes them, and under
            autocast as they are rounded before the head.
        batch_tokens: tokens that are computed at a time, padding included.
    """

    def __init__(
        self,
        path: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        batch_tokens: int = 8192,
    ) -> None:
        if batch_tokens < 1:
            raise InputError(f"StoredStates.batch_tokens must be at least 1, got {batch_tokens}")
        self.path = path
        self.dtype = dtype
        self.batch_tokens = batch_tokens
        self._store: StateStore | None = None
        self._head: OutputHead | None = None
        self._lender: PreTrainedModel | None = None

    def attach(self, policy: PreTrainedModel, surroundings: Surroundings) -> None:
        """Computes what is not on disk yet.

        Raises:
            InputError: the folder holds other states, damaged ones or something else, or the disk is too small.
        """
        # Lightning makes models with the GPU as default device.
        with torch.device("cpu"):
            self._store = self._filled(policy, surroundings)
        head = OutputHead.of(policy)
        trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
        if trained and None in surroundings.layers:
            self._head = _converted(head, lambda tensor: tensor.detach().to(surroundings.device, copy=True))
        else:
            self._lender = policy

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        if self._head is not None:
            self._head = _converted(self._head, function)

    @property
    def head(self) -> OutputHead:
        """As the policy started; its own where that is frozen, or where no loss compares logits."""
        if self._lender is not None:
            return OutputHead.of(self._lender)
        if self._head is None:
            raise RuntimeError("the reference is used before attach() has given it a head")
        return self._head

    def states(self, batch: Batch, layers: Collection[Layer] = (None,)) -> dict[Layer, Tensor]:
        if self._store is None:
            raise RuntimeError("the reference is used before attach() has given it states")
        device = batch.input_ids.device
        index = self._store.index(batch)
        return {
            layer: self._store.states(layer, index, pinned=device.type == "cuda").to(
                device, non_blocking=True
            )
            for layer in layers
        }

    def _filled(self, policy: PreTrainedModel, surroundings: Surroundings) -> StateStore:
        folder = RunFolder(surroundings.folder).reference if self.path is None else Path(self.path)
        wanted = _Wanted.of(policy, surroundings, self.dtype)
        known = wanted.found_in(folder) or self._planned(policy, surroundings, wanted)
        store = StateStore(folder, known, wanted.lengths)
        store.check()
        store.check_space()
        fills = surroundings.rank == 0 and len(store.missing()) > 0
        # Every rank has looked before one writes.
        surroundings.barrier()
        with store.alone() if fills else nullcontext():
            if fills:
                store.prepare()
            surroundings.barrier()
            # Another run may have been here in the meantime.
            found = wanted.found_in(folder)
            if found is not None:
                store = StateStore(folder, found, wanted.lengths)
                self._fill(store, policy, surroundings)
            surroundings.barrier()
        if found is None or len(store.missing()):
            raise InputError(
                f"rank {surroundings.rank} does not see in {folder} what other ranks wrote there: set "
                "model.reference.path to a folder that all ranks share"
            )
        store.open()
        return store

    def _planned(self, policy: PreTrainedModel, surroundings: Surroundings, wanted: "_Wanted") -> Manifest:
        """What a new store is to hold; widths and dtypes are those of one short sequence."""
        shortest = min(_all(surroundings.sequences), key=lambda each: len(each.ids))
        with _computing(policy, surroundings):
            states = answer_states(policy, _batch([shortest], surroundings.device), surroundings.layers)
        formats = []
        for layer, values in sorted(states.items(), key=lambda each: -1 if each[0] is None else each[0]):
            lossless = _name((layer is None and wanted.autocast) or values.dtype)
            formats.append(LayerFormat(layer, values.shape[1], self.dtype or lossless, lossless))
        sections = {name: (len(each), sum(each)) for name, each in wanted.lengths.items()}
        return Manifest(wanted.fingerprints, tuple(formats), sections)

    def _fill(self, store: StateStore, policy: PreTrainedModel, surroundings: Surroundings) -> None:
        missing = set(store.missing().tolist())
        if not missing:
            rank_zero_info(f"the reference's states are read from {store.folder} ({store.size})")
            return
        sequences = {
            number: sequence
            for name, rows in surroundings.sequences.items()
            for number, sequence in zip(store.numbers[name], rows, strict=True)
        }
        chunks = self._chunks(sequences)
        # Of a model in shards all ranks compute together, whether they have anything missing or not.
        together, rank, ranks = is_sharded(policy), surroundings.rank, surroundings.world_size
        bar = tqdm(
            desc=f"reference's states ({store.size})", unit=" positions", unit_scale=True,
            total=store.positions, initial=store.positions - store.missing_positions(), disable=surroundings.rank > 0,
        )  # fmt: skip
        with bar, _computing(policy, surroundings):
            for start in range(0, len(chunks), ranks):
                turn = chunks[start : start + ranks]
                own = turn[min(rank, len(turn) - 1)]
                needed = rank < len(turn) and not missing.isdisjoint(own)
                if not (needed or (together and not all(map(missing.isdisjoint, turn)))):
                    continue
                batch = _batch([sequences[number] for number in own], surroundings.device)
                states = answer_states(policy, batch, store.layers)
                if needed:
                    store.write(own, states)
                # Other ranks' are counted too.
                bar.update(store.positions - store.missing_positions() - bar.n)

    def _chunks(self, sequences: Mapping[int, Encoded]) -> list[list[int]]:
        """The numbers of sequences that are computed together: the longest first, so that memory fails at once.

        They do not depend on what is missing, and so a store that was interrupted ends bitwise as one that was not.
        """
        chunks: list[list[int]] = []
        width = 0
        for number in sorted(sequences, key=lambda number: (-len(sequences[number].ids), number)):
            if not chunks or (len(chunks[-1]) + 1) * width > self.batch_tokens:
                chunks.append([])
                width = len(sequences[number].ids)
            chunks[-1].append(number)
        return chunks


@dataclass(frozen=True)
class _Wanted:
    """What a store must be of to serve this run.

    Attributes:
        fingerprints: by name, of all that states depend on.
        lengths: answer positions of each sequence, by section.
        layers: whose states losses ask for.
        dtype: on disk; null is what loses nothing.
        autocast: the dtype that last states are rounded to before the head, where the run does that.
    """

    fingerprints: dict[str, str]
    lengths: dict[str, list[int]]
    layers: Collection[Layer]
    dtype: str | None
    autocast: torch.dtype | None

    @classmethod
    def of(cls, policy: PreTrainedModel, surroundings: Surroundings, dtype: str | None) -> "_Wanted":
        kind = surroundings.device.type
        with surroundings.precision():
            autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
            precision = _name(torch.get_default_dtype())
        fingerprints = {
            "model": weights_fingerprint(_starting_weights(policy)),
            "model configuration": _config_fingerprint(policy),
            "precision": precision if autocast is None else f"{_name(autocast)} autocast",
            **surroundings.identity,
        }
        for name, rows in surroundings.sequences.items():
            fingerprints[f"{name} sequences"] = _sequences_fingerprint(rows)
        lengths = {
            name: [each.answer_length for each in rows] for name, rows in surroundings.sequences.items()
        }
        return cls(fingerprints, lengths, surroundings.layers, dtype, autocast)

    def found_in(self, folder: Path) -> Manifest | None:
        """That of the store in a folder, which may hold more than is wanted.

        Raises:
            InputError: it lacks something, or is of something else.
        """
        manifest = Manifest.read(folder)
        if manifest is None:
            return None
        theirs = manifest.fingerprints
        different = [name for name, mine in self.fingerprints.items() if theirs.get(name, mine) != mine]
        formats = {each.layer: each for each in manifest.layers}
        lacking = [name for name in self.fingerprints if name not in theirs]
        lacking += [_called(layer) for layer in self.layers if layer not in formats]
        for layer in formats.keys() & set(self.layers):
            here = self.dtype or formats[layer].lossless_dtype
            if formats[layer].dtype != here:
                different.append(f"dtype of {_called(layer)}, {formats[layer].dtype} there and {here} here")
        if different:
            raise InputError(
                f"{folder} holds another reference's states (different: {'; '.join(different)}): give "
                "model.reference.path another folder, or remove that one"
            )
        if lacking:
            raise InputError(
                f"{folder} was made for losses that compare less with the reference (it lacks {'; '.join(lacking)}): "
                "give model.reference.path another folder"
            )
        return manifest


@contextmanager
def _computing(policy: PreTrainedModel, surroundings: Surroundings) -> Iterator[None]:
    """The policy as the run will compute with it, but in eval mode."""
    modes = [(each, each.training) for each in policy.modules()]
    with torch.no_grad(), surroundings.precision():
        policy.to(surroundings.device)
        # With true half or double precision Lightning converts the weights, but only after this.
        if torch.get_default_dtype() != torch.float32:
            policy.to(torch.get_default_dtype())
        policy.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _batch(sequences: Sequence[Encoded], device: torch.device) -> Batch:
    return collate({"": sequences}, range(len(sequences))).to(device)


def _all(sequences: Mapping[str, Sequence[Encoded]]) -> Iterator[Encoded]:
    return (each for rows in sequences.values() for each in rows)


def _starting_weights(policy: PreTrainedModel) -> nn.ParameterList:
    """Without adapters that are still nothing, so that models with and without them share a store."""
    idle = {
        id(parameter)
        for layer in adapted_layers(policy).values()
        if not any(full_tensor(each.weight).any() for each in layer.lora_B.values())
        for name, parameter in layer.named_parameters()
        if not name.startswith("base_layer.")
    }
    return nn.ParameterList(each for each in policy.parameters() if id(each) not in idle)


def _config_fingerprint(policy: PreTrainedModel) -> str:
    config: Any = policy.config
    values = {name: value for name, value in config.to_diff_dict().items() if name not in PROVENANCE}
    return sha256(dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _sequences_fingerprint(sequences: Sequence[Encoded]) -> str:
    digest = sha256()
    for each in sequences:
        digest.update(dumps([each.ids, each.answer_start]).encode())
    return digest.hexdigest()


def _converted(head: OutputHead, function: Callable[[Tensor], Tensor]) -> OutputHead:
    return replace(
        head, weight=function(head.weight), bias=None if head.bias is None else function(head.bias)
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _called(layer: Layer) -> str:
    return "the last layer" if layer is None else f"layer {layer}"
