"""Sharded checkpoints: a folder to which each rank writes its own shards with torch.distributed.checkpoint.

    checkpoint.pt               the checkpoint with meta tensors in place of sharded ones, and under `shards` the
                                CRC-32 of each other file
    shard-00001-*.safetensors   shards of one rank

torch's own metadata is a pickle; its safetensors writer leaves that out, and writes no checksums. So `checkpoint.pt`
(tensors and plain values, read by torch.load with weights_only) says what the folder must hold.
"""

import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, Shard

from dipo_pl.distributed import on_all_ranks
from dipo_pl.errors import InputError, TrainingError
from dipo_pl.storage.files import replacing_folder, writing

INDEX = "checkpoint.pt"
SHARDED = ("state_dict", "optimizer_states")
# Size of one file of a rank, which needs about twice as much memory while it is written.
FILE_BYTES = 1 << 30


def save_sharded(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint whose sharded tensors are DTensors, whole or not at all. A collective.

    Raises:
        WriteError: a rank cannot write, on all ranks; what was at `path` stays.
        TrainingError: another failure of a rank, or the ranks do not share the folder.
    """
    first = dist.get_rank() == 0
    index, shards = _split(checkpoint)
    with ExitStack() as stack:
        folder = on_all_ranks(lambda: stack.enter_context(replacing_folder(path)) if first else None)[0]
        assert folder is not None
        checksums = on_all_ranks(lambda: _write_shards(shards, folder, path))

        def finish() -> None:
            files = {name: checksum for each in checksums for name, checksum in each.items()}
            for name in files:
                if not (folder / name).is_file():
                    raise TrainingError(
                        f"rank 0 cannot see {folder / name}, which another rank has written: set output_dir to a folder "
                        "that all machines share"
                    )
            with writing(path), open(folder / INDEX, "wb") as file:
                torch.save({**index, "shards": {"files": files}}, file)
            # Syncs the folder and renames it.
            stack.close()

        on_all_ranks(finish if first else lambda: None)


def read_sharded(folder: Path) -> dict[str, Any]:
    """Return a checkpoint with meta tensors in place of sharded ones; `load_into` and `full_checkpoint` read those."""
    checkpoint: dict[str, Any] = torch.load(folder / INDEX, map_location="cpu", weights_only=True)
    checkpoint["shards"]["folder"] = str(folder)
    return checkpoint


def load_into(targets: Mapping[str, Tensor], checkpoint: Mapping[str, Any]) -> None:
    """Copy tensors of a checkpoint, sharded or not, into targets; of a DTensor this rank's shard alone is read.

    Args:
        targets: by path in the checkpoint, "state_dict.model.lm_head.weight" for example.
        checkpoint: as `read_checkpoint` returns it.

    Raises:
        InputError: a tensor has another shape.
    """
    sources = _tensors(checkpoint)
    # Tied tensors are one meta tensor, stored under the first of their names.
    names = {id(each): name for name, each in reversed(sources.items())}
    stored: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, target in targets.items():
            source = sources[name]
            if source.shape != target.shape:
                raise InputError(
                    f"the checkpoint has a tensor of shape {tuple(source.shape)} where this model has "
                    f"{tuple(target.shape)}: it is of another model, see model.policy"
                )
            if not source.is_meta:
                local = target.to_local() if isinstance(target, DTensor) else target
                local.copy_(_local_shard(source, target))
            elif source.numel():
                stored.setdefault(names[id(source)], target)
        if stored:
            _read_shards(stored, Path(checkpoint["shards"]["folder"]))
        for name, target in targets.items():
            first = stored.get(names[id(sources[name])])
            if first is not None and first is not target:
                target.copy_(first)


def full_checkpoint(
    checkpoint: Mapping[str, Any], empty: Callable[[torch.Size, torch.dtype], Tensor] | None = None
) -> dict[str, Any]:
    """Return a checkpoint of `read_sharded` with all tensors in memory; tied ones are one tensor.

    Args:
        checkpoint: with meta tensors.
        empty: allocates the memory of a tensor; null is the CPU's.
    """
    made: dict[int, Tensor] = {}

    def allocated(_: str, each: Tensor) -> Tensor:
        if each.is_meta and id(each) not in made:
            made[id(each)] = (
                empty(each.shape, each.dtype) if empty else torch.empty(each.shape, dtype=each.dtype)
            )
        return made.get(id(each), each)

    full = {key: _mapped(allocated, value, key) for key, value in checkpoint.items() if key != "shards"}
    meta = {name for name, each in _tensors(checkpoint).items() if each.is_meta}
    load_into({name: each for name, each in _tensors(full).items() if name in meta}, checkpoint)
    return full


def check_shards(folder: Path) -> None:
    """Compare all shards with their checksums, and with the tensors that the checkpoint must have.

    Raises:
        ValueError: a file is missing, damaged or not of this checkpoint, or a tensor is not complete.
    """
    checkpoint = torch.load(folder / INDEX, map_location="cpu", weights_only=True)
    shards = checkpoint.get("shards")
    files: dict[str, int] = shards.get("files", {}) if isinstance(shards, dict) else {}
    present = {each.name for each in folder.glob("*.safetensors")}
    if lacking := files.keys() - present:
        raise ValueError(f"{min(lacking)} is missing")
    if foreign := present - files.keys():
        raise ValueError(f"{min(foreign)} is not a file of this checkpoint")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for name, checksum in zip(
            files, threads.map(lambda name: _checksum(folder / name), files), strict=True
        ):
            if checksum != files[name]:
                raise ValueError(f"{name} is damaged")
    stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    seen: set[int] = set()
    for name, each in _tensors(checkpoint).items():
        if not each.is_meta or not each.numel() or id(each) in seen:
            continue
        seen.add(id(each))
        found = stored.get(name)
        chunks = found.chunks if isinstance(found, TensorStorageMetadata) else []
        if sum(chunk.sizes.numel() for chunk in chunks) != each.numel():
            raise ValueError(f"{name} is not complete")


def _split(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, DTensor]]:
    """Return the checkpoint with meta tensors in place of sharded ones, and these by path."""
    shards: dict[str, DTensor] = {}
    tied: dict[tuple[int, torch.Size], Tensor] = {}

    def described(name: str, each: Tensor) -> Tensor:
        if not isinstance(each, DTensor):
            return each
        if any(placement.is_partial() for placement in each.placements):
            return each.full_tensor()
        place = each.to_local().data_ptr(), each.shape
        if place not in tied or not place[0]:
            shards[name] = each
            tied[place] = torch.empty(each.shape, dtype=each.dtype, device="meta")
        return tied[place]

    index = {key: _mapped(described, checkpoint[key], key) for key in SHARDED if key in checkpoint}
    return {**checkpoint, **index}, shards


def _write_shards(shards: Mapping[str, DTensor], folder: Path, path: Path) -> dict[str, int]:
    """Write this rank's shards and return the checksum of each file; raise WriteError if they cannot be written."""
    # Empty ones would be chunks that others overlap.
    own = {name: each for name, each in shards.items() if each.to_local().numel()}
    with writing(path), _plain_errors():
        # A network file system may be late to show what rank 0 has made.
        folder.mkdir(parents=True, exist_ok=True)
        files = _file_numbers(shards)
        writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
        save(own, storage_writer=writer)
        return {
            each.name: _checksum(each)
            for each in folder.glob(f"shard-{dist.get_rank() + 1:05}-*.safetensors")
        }


def _read_shards(targets: dict[str, Tensor], folder: Path) -> None:
    """Read what this rank needs, without waiting for others."""
    with warnings.catch_warnings(), _plain_errors():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(targets, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the error of the first rank that failed in place of torch's CheckpointException, which is no Exception."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


def _file_numbers(shards: Mapping[str, DTensor]) -> dict[str, int]:
    """Return the number of each tensor's file, the same on all ranks, so that no file is much above FILE_BYTES."""
    numbers: dict[str, int] = {}
    number, size = 1, 0
    for name, each in shards.items():
        share = each.numel() * each.element_size() // each.device_mesh.size()
        if size and size + share > FILE_BYTES:
            number, size = number + 1, 0
        numbers[name] = number
        size += share
    return numbers


def _local_shard(source: Tensor, target: Tensor) -> Tensor:
    """Return the part of a full tensor that this rank holds of `target`: a placement shards as torch.chunk does."""
    if isinstance(target, DTensor):
        for dim, placement in enumerate(target.placements):
            if isinstance(placement, Shard):
                chunks = source.chunk(target.device_mesh.size(dim), placement.dim)
                rank = target.device_mesh.get_local_rank(dim)
                source = chunks[rank] if rank < len(chunks) else source.narrow(placement.dim, 0, 0)
    return source


def _tensors(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights and optimizer states by their path in a checkpoint."""
    found: dict[str, Tensor] = {}
    for key in SHARDED:
        _mapped(found.setdefault, checkpoint.get(key), key)
    return found


def _mapped(function: Callable[[str, Tensor], Any], value: Any, name: str) -> Any:
    """Return the same structure with `function(path, tensor)` in place of each tensor."""
    if isinstance(value, Tensor):
        return function(name, value)
    if isinstance(value, Mapping):
        return {key: _mapped(function, each, f"{name}.{key}") for key, each in value.items()}
    if isinstance(value, list):
        return [_mapped(function, each, f"{name}.{number}") for number, each in enumerate(value)]
    return value


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 24):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
