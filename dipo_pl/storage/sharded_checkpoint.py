"""Checkpoints in shards: a folder to which every rank writes its own parts of tensors, and the first one the rest.

    checkpoint.pt                 an ordinary checkpoint but for divided tensors, of which it has shape and dtype (they are
                                  on the meta device), and under `shards` where their parts lie, with each file's
                                  CRC-32
    rank-00000-000.safetensors    parts of one rank

torch's own format keeps its metadata in a pickle; its safetensors writer (`torch.distributed.checkpoint.hf_storage`) has
no checksums, and holds all of a rank's parts in memory once more.
"""

import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from dipo_pl.distributed import on_all_ranks
from dipo_pl.errors import InputError, TrainingError
from dipo_pl.storage.run_folder import replacing_folder, sync, writing

Numbers = tuple[int, ...]
# A file, the name in it, where the part begins in the whole tensor, and its shape.
Part = tuple[str, str, Numbers, Numbers]

REST = "checkpoint.pt"
DIVIDED = ("state_dict", "optimizer_states")
# A rank takes two or three times as much memory while it writes.
FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint in shards, on disk until it is asked for."""

    folder: Path
    name: str
    shape: Numbers
    dtype: torch.dtype
    parts: tuple[Part, ...]

    def whole(self) -> Tensor:
        return self.read((0,) * len(self.shape), self.shape)

    def read(self, first: Numbers, shape: Numbers) -> Tensor:
        """What begins at `first` and has this shape, in memory of the CPU.

        Raises:
            InputError: the shards do not have all of it.
        """
        tensor, filled = torch.empty(shape, dtype=self.dtype), 0
        for file, name, start, size in self.parts:
            overlap = [
                (max(a, b), min(a + n, b + m)) for a, n, b, m in zip(first, shape, start, size, strict=True)
            ]
            if any(begin >= end for begin, end in overlap):
                continue
            here = tuple(slice(begin - a, end - a) for (begin, end), a in zip(overlap, first, strict=True))
            there = tuple(slice(begin - a, end - a) for (begin, end), a in zip(overlap, start, strict=True))
            # Files elsewhere are none of a checkpoint's business.
            with safe_open(self.folder / Path(file).name, framework="pt") as opened:
                tensor[here] = opened.get_slice(name)[there]
            filled += math.prod(end - begin for begin, end in overlap)
        if filled < tensor.numel():
            raise InputError(
                f"the shards in {self.folder} do not have all of {self.name}: give another checkpoint"
            )
        return tensor


def of_this_rank(source: Tensor | StoredTensor, target: Tensor) -> Tensor:
    """What of a checkpoint's tensor belongs where this rank has `target`; nothing else is read."""
    if not isinstance(target, DTensor):
        return in_memory(source)
    shape, first = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
    if isinstance(source, StoredTensor):
        return source.read(tuple(first), tuple(shape))
    return source[tuple(slice(a, a + n) for a, n in zip(first, shape, strict=True))]


def in_memory(source: Tensor | StoredTensor) -> Tensor:
    return source.whole() if isinstance(source, StoredTensor) else source


def load_sharded(folder: Path) -> dict[str, Any]:
    """The checkpoint, with a StoredTensor for each that was divided."""
    checkpoint: dict[str, Any] = torch.load(folder / REST, map_location="cpu", weights_only=True)
    parts = checkpoint.pop("shards")["parts"]

    def stored(name: str, each: Tensor) -> Any:
        if name not in parts:
            return each
        return StoredTensor(folder, name, tuple(each.shape), each.dtype, tuple(parts[name]))

    return checkpoint | {key: _mapped(stored, checkpoint[key], key) for key in DIVIDED if key in checkpoint}


def with_whole_tensors(
    checkpoint: Mapping[str, Any], read: Callable[[StoredTensor], Tensor] = StoredTensor.whole
) -> dict[str, Any]:
    """The checkpoint as one process has it; what was tied is one tensor again."""
    known: dict[tuple[Any, ...], Tensor] = {}

    def made(name: str, each: Any) -> Any:
        if not isinstance(each, StoredTensor):
            return each
        key = (each.parts, each.shape, each.dtype)
        if key not in known:
            known[key] = read(each)
        return known[key]

    return {
        **checkpoint,
        **{key: _mapped(made, checkpoint[key], key) for key in DIVIDED if key in checkpoint},
    }


def check_shards(folder: Path) -> None:
    """Compares all shards with their checksums.

    Raises:
        ValueError: one is missing or damaged, or they are not those of all tensors.
    """
    checkpoint = torch.load(folder / REST, map_location="cpu", weights_only=True)
    files = _checked_index(checkpoint)
    names: dict[str, set[str]] = {}
    for parts in checkpoint["shards"]["parts"].values():
        for file, name, *_ in parts:
            names.setdefault(file, set()).add(name)

    def check(name: str) -> None:
        path = folder / Path(name).name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if _checksum(path) != files[name]:
            raise ValueError(f"{name} is damaged")
        with safe_open(path, framework="pt") as opened:
            lacking = names.get(name, set()) - {*opened.keys()}
        if lacking:
            raise ValueError(f"{name} has no {min(lacking)}")

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for _ in threads.map(check, files):
            pass


def _checked_index(checkpoint: dict[str, Any]) -> dict[str, int]:
    """The files, with their checksums, of a checkpoint each of whose tensors is described as a whole."""
    shards = checkpoint.get("shards")
    if not isinstance(shards, dict) or not {"files", "parts"} <= shards.keys():
        raise ValueError("it does not say where its tensors are")
    files: dict[str, int] = shards["files"]

    def check(name: str, tensor: Any) -> Any:
        if isinstance(tensor, Tensor) and tensor.is_meta:
            parts = shards["parts"].get(name, ())
            for file, _, start, size in parts:
                ends = [a + n for a, n in zip(start, size, strict=True)]
                if file not in files or any(a > b for a, b in zip(ends, tensor.shape, strict=True)):
                    raise ValueError(f"a part of {name} is nowhere")
            apart = len({start for _, _, start, _ in parts}) == len(parts)
            if not apart or sum(math.prod(size) for *_, size in parts) != tensor.numel():
                raise ValueError(f"it does not have all of {name}")
        return tensor

    for key in DIVIDED:
        _mapped(check, checkpoint.get(key), key)
    return files


def save_sharded(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Writes a checkpoint whose divided tensors are DTensors; all ranks must ask. It is whole or absent.

    Raises:
        WriteError: some rank cannot write, on all ranks; what stood at `path` still does.
        TrainingError: another failure of some rank; or the ranks do not share the folder.
    """
    first = dist.get_rank() == 0
    rest, parts = _divided(checkpoint)
    with ExitStack() as stack:
        folder = on_all_ranks(lambda: stack.enter_context(replacing_folder(path)) if first else None)[0]
        assert folder is not None
        written = on_all_ranks(partial(_write, parts, folder, path))

        def finish() -> None:
            files = {name: checksum for each, _ in written for name, checksum in each.items()}
            places: dict[str, list[Part]] = {name: [] for name in parts}
            for _, of_rank in written:
                for name, place in of_rank:
                    places[name].append(place)
            for name in files:
                if not (folder / name).is_file():
                    raise TrainingError(
                        f"{folder / name} is written, and rank 0 does not see it: output_dir must be a folder that all "
                        "machines share"
                    )
            with writing(path), open(folder / REST, "wb") as file:
                torch.save({**rest, "shards": {"files": files, "parts": places}}, file)
            # Syncs, and takes the place of what stood there.
            stack.close()

        on_all_ranks(finish if first else lambda: None)


def _divided(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, DTensor]]:
    """The checkpoint with descriptions in place of tensors that ranks have parts of, and these by name."""
    divided: dict[str, DTensor] = {}

    def taken(name: str, each: Tensor) -> Tensor:
        if not isinstance(each, DTensor):
            return each
        if any(placement.is_partial() for placement in each.placements):
            return each.full_tensor()
        divided[name] = each
        return torch.empty(each.shape, dtype=each.dtype, device="meta")

    rest = {key: _mapped(taken, checkpoint[key], key) for key in DIVIDED if key in checkpoint}
    return {**checkpoint, **rest}, divided


def _mapped(function: Callable[[str, Any], Any], value: Any, name: str) -> Any:
    """The same structure with other tensors; each is called by the path to it."""
    if isinstance(value, (Tensor, StoredTensor)):
        return function(name, value)
    if isinstance(value, Mapping):
        return {key: _mapped(function, each, f"{name}.{key}") for key, each in value.items()}
    if isinstance(value, list):
        return [_mapped(function, each, f"{name}.{number}") for number, each in enumerate(value)]
    return value


Written = tuple[dict[str, int], list[tuple[str, Part]]]


def _write(tensors: Mapping[str, DTensor], folder: Path, path: Path) -> Written:
    """Writes this rank's parts; gives each file's checksum, and where each tensor's part is.

    Raises:
        WriteError: it cannot.
    """
    rank = dist.get_rank()
    files: dict[str, int] = {}
    places: list[tuple[str, Part]] = []
    # Tied weights are written once.
    known: dict[tuple[int, torch.Size], tuple[str, str]] = {}
    with writing(path):
        # A network file system may not show at once what the first rank has made.
        folder.mkdir(parents=True, exist_ok=True)
        for number, names in enumerate(_groups(tensors)):
            file = f"rank-{rank:05}-{number:03}.safetensors"
            parts = {}
            for name in names:
                local = tensors[name].to_local()
                if not local.numel():
                    continue
                shape, first = compute_local_shape_and_global_offset(
                    tensors[name].shape, tensors[name].device_mesh, tensors[name].placements
                )
                place = known.setdefault((local.data_ptr(), local.shape), (file, name))
                if place == (file, name):
                    parts[name] = local.contiguous()
                places.append((name, (*place, tuple(first), tuple(shape))))
            if not parts:
                continue
            content = save(parts)
            with open(folder / file, "wb") as opened:
                opened.write(content)
            sync(folder / file)
            files[file] = zlib.crc32(content)
    return files, places


def _groups(tensors: Mapping[str, DTensor]) -> Iterator[list[str]]:
    """Names of what goes into one file."""
    group: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        bytes_here = tensor.to_local().nbytes
        if group and size + bytes_here > FILE_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += bytes_here
    if group:
        yield group


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 24):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
