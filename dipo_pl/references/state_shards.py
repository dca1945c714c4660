"""Shards of hidden states on disk: safetensors files that are written once, checked, and mapped into memory."""

import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dipo_pl.batch import Batch
from dipo_pl.errors import InputError
from dipo_pl.models.hidden_states import Layer
from dipo_pl.storage.files import replacing, write_text

FORMAT = 2
# Kind and number of a sequence, as in `Batch.rows`.
Key = tuple[str, int]


class StateShards:
    """Hidden states of sequences at their answer positions, in a folder that several runs and ranks may share.

        SECTION-NUMBER.safetensors    a shard, named after its first sequence: a tensor [positions, d] for each layer,
                                      sequence after sequence; its metadata has fingerprints, sequences and a CRC-32
        manifest.json                 fingerprints and names of all shards, written when no sequence is missing

    Every file is renamed into place when it is complete, so that a build that was cut short lacks whole shards. A
    folder with more layers or sections than asked for can be used.

    Args:
        folder: folder of the files.
        fingerprints: what the states depend on, by name.
        lengths: number of answer positions of each sequence, by section.
    """

    def __init__(
        self, folder: Path, fingerprints: Mapping[str, str], lengths: Mapping[str, Sequence[int]]
    ) -> None:
        self.folder = folder
        self.fingerprints = dict(fingerprints)
        self.lengths = lengths
        self._shards: dict[str, dict[str, Tensor]] = {}
        self._spans: dict[Key, tuple[str, slice]] = {}

    def load(self) -> None:
        """Check and map the shards in the folder that are not mapped yet.

        Raises:
            InputError: the folder holds states of another reference, or a file is missing or damaged.
        """
        names = sorted(path.name for path in self.folder.glob("*.safetensors"))
        manifest = self._manifest()
        for name in names if manifest is None else manifest["shards"]:
            if name not in self._shards:
                self._load_shard(self.folder / name)
        if manifest is not None and self.missing():
            raise self._unusable("the shards that manifest.json names lack sequences")

    def missing(self) -> list[Key]:
        """Return the sequences that no mapped shard holds."""
        keys = ((name, row) for name, lengths in self.lengths.items() for row in range(len(lengths)))
        return [key for key in keys if key not in self._spans]

    def write(self, keys: Sequence[Key], states: Mapping[Layer, Tensor]) -> None:
        """Write a shard.

        Args:
            keys: its sequences.
            states: [positions, d] of each layer, sequence after sequence.

        Raises:
            InputError: a state is not finite.
            WriteError: the shard cannot be written.
        """
        tensors = {layer_name(layer): each.cpu().contiguous() for layer, each in states.items()}
        for name, each in tensors.items():
            if not each.isfinite().all():
                raise InputError(
                    f"the {name} states of the reference are not finite in {each.dtype}: set "
                    "model.reference.dtype to float32; if they are not finite then either, the weights are broken"
                )
        sequences = [[name, row, self.lengths[name][row]] for name, row in keys]
        content = {"fingerprints": self.fingerprints, "sequences": sequences}
        # One entry: the order of several is undefined, and shards of equal states should be equal.
        metadata = {"dipo_pl": json.dumps({"content": content, "crc32": _checksum(content, tensors)})}
        with replacing(self.folder / f"{keys[0][0]}-{keys[0][1]:06d}.safetensors") as temporary:
            temporary.write_bytes(save(tensors, metadata))

    def finish(self) -> None:
        """Write the manifest, if there is none, when no sequence is missing.

        Raises:
            WriteError: the manifest cannot be written.
        """
        path = self.folder / "manifest.json"
        if not path.exists():
            names = sorted({name for name, _ in self._spans.values()})
            manifest = {"format": FORMAT, "fingerprints": self.fingerprints, "shards": names}
            write_text(path, json.dumps(manifest, indent=2) + "\n")

    def read(self, batch: Batch, layers: Collection[Layer]) -> dict[Layer, Tensor]:
        """Return the states of each layer at the answer positions of a batch, [N, d], on the device of the batch.

        Raises:
            InputError: the batch has other sequences than those that were stored.
        """
        device = batch.input_ids.device
        spans = []
        keys = [(kind, row) for kind, rows in batch.rows.items() for row in rows]
        for (kind, row), length in zip(keys, batch.lengths, strict=True):
            stored = self.lengths.get(kind, ())
            if not 0 <= row < len(stored) or stored[row] != length:
                raise InputError(
                    f"row {row} of {kind!r} in a batch has {length} answer tokens, and not in {self.folder}: the data "
                    "module's training_sequences must be the sequences of its batches"
                )
            spans.append(self._spans[kind, row])
        states = {}
        for layer in layers:
            pieces = [self._shards[shard][layer_name(layer)][span] for shard, span in spans]
            shape = sum(map(len, pieces)), pieces[0].shape[1]
            pinned = device.type == "cuda"
            gathered = torch.empty(shape, dtype=pieces[0].dtype, device="cpu", pin_memory=pinned)
            states[layer] = torch.cat(pieces, out=gathered).to(device, non_blocking=True)
        return states

    def _manifest(self) -> dict[str, Any] | None:
        path = self.folder / "manifest.json"
        if not path.exists():
            return None
        try:
            manifest: dict[str, Any] = json.loads(path.read_bytes())
            if manifest["format"] != FORMAT:
                raise ValueError(f"its format is {manifest['format']}, not {FORMAT}")
            fingerprints = dict(manifest["fingerprints"])
            manifest["shards"] = [Path(name).name for name in manifest["shards"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._unusable(f"manifest.json cannot be read, {type(error).__name__}: {error}") from error
        self._check_fingerprints(fingerprints)
        return manifest

    def _load_shard(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = json.loads(file.metadata()["dipo_pl"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            content = metadata["content"]
            if metadata["crc32"] != _checksum(content, tensors):
                raise ValueError("its checksum differs")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise self._unusable(f"{path.name} is missing or damaged: {error}") from error
        self._check_fingerprints(content["fingerprints"])
        self._shards[path.name] = tensors
        start = 0
        for name, row, length in content["sequences"]:
            self._spans[name, row] = path.name, slice(start, start + length)
            start += length

    def _check_fingerprints(self, found: Mapping[str, str]) -> None:
        different = [
            name if len(here) == 64 else f"{name}: {found.get(name, 'none')} there, {here} here"
            for name, here in self.fingerprints.items()
            if found.get(name) != here
        ]
        if different:
            raise InputError(
                f"{self.folder} holds the states of another reference (different: {'; '.join(different)}): set "
                "model.reference.path to another folder, or remove that one"
            )

    def _unusable(self, why: str) -> InputError:
        return InputError(
            f"{self.folder} holds no usable reference states ({why}): set model.reference.path to another folder, or "
            "remove that one"
        )


def layer_name(layer: Layer) -> str:
    """Return the name of a layer in files and messages."""
    return "last layer" if layer is None else f"layer {layer}"


def _checksum(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    checksum = zlib.crc32(json.dumps(content).encode())
    for _, each in sorted(tensors.items()):
        checksum = zlib.crc32(each.flatten().view(torch.uint8).numpy().data, checksum)
    return checksum
