"""Hidden states of many sequences on disk: filled in any order, by several processes, whole after any kill."""

import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import disk_usage

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dipo_pl.batch import Batch
from dipo_pl.errors import InputError, WriteError
from dipo_pl.models.hidden_states import Layer
from dipo_pl.storage.run_folder import replacing, write_text

FORMAT = 1
UNFINISHED = -1


@dataclass(frozen=True)
class LayerFormat:
    """How the states of one layer are kept.

    Attributes:
        layer: see `Layer`.
        width: d.
        dtype: of the file, as torch calls it.
        lossless_dtype: one that loses nothing of what was computed.
    """

    layer: Layer
    width: int
    dtype: str
    lossless_dtype: str

    @property
    def file(self) -> str:
        return "last.bin" if self.layer is None else f"layer-{self.layer}.bin"

    @property
    def position_bytes(self) -> int:
        return self.width * self.torch_dtype.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"{self.dtype} is no dtype")
        return dtype


@dataclass(frozen=True)
class Manifest:
    """What a store is of; written before all else and never changed.

    Attributes:
        fingerprints: by name, of all that the states depend on.
        layers: one file each.
        sections: sequences and positions of each section, in the files' order.
    """

    fingerprints: dict[str, str]
    layers: tuple[LayerFormat, ...]
    sections: dict[str, tuple[int, int]]

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """That of a folder; None where nothing has been stored.

        Raises:
            InputError: the folder is something else.
        """
        path = folder / "manifest.json"
        try:
            # A kill may have left a hidden file.
            if not folder.exists() or all(each.name.startswith(".") for each in folder.iterdir()):
                return None
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"it is of format {content['format']}, not {FORMAT}")
            layers = tuple(LayerFormat(**each) for each in content["layers"])
            sizes = {name: (int(rows), int(count)) for name, (rows, count) in content["sections"].items()}
            # Fails here where a layer's format is none.
            sum(each.position_bytes for each in layers)
            return cls(dict(content["fingerprints"]), layers, sizes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise _unusable(folder, f"{path.name} cannot be read, {why}") from error

    def write(self, folder: Path) -> None:
        write_text(folder / "manifest.json", json.dumps({"format": FORMAT} | asdict(self), indent=2) + "\n")


class StateStore:
    """The states of each sequence's answer positions, of some layers.

        manifest.json    see `Manifest`
        last.bin         [positions, d] a layer, section after section and sequence after sequence
        checksums.bin    [sequences, layers] int64: CRC-32 of each sequence's states, -1 until they are on disk

    Made in this order, so that a store without checksums holds nothing yet. States are written, not mapped: a full
    disk is then an error rather than a signal, and ranks on several machines do not write to a page of each other's.

    Args:
        folder: the store's own.
        manifest: as it lies there, or is going to.
        lengths: answer positions of every sequence, of those sections that are to be used.

    Attributes:
        numbers: of each of these sections, its sequences' numbers among all.
    """

    def __init__(self, folder: Path, manifest: Manifest, lengths: Mapping[str, Sequence[int]]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.numbers: dict[str, range] = {}
        self._sequences = sum(rows for rows, _ in manifest.sections.values())
        self._positions = sum(count for _, count in manifest.sections.values())
        self._starts = torch.zeros(self._sequences, dtype=torch.long, device="cpu")
        self._lengths = torch.zeros_like(self._starts)
        self._own = torch.zeros_like(self._starts, dtype=torch.bool)
        self._mapped: dict[Layer, Tensor] = {}
        first_row = first_position = 0
        for name, (rows, count) in manifest.sections.items():
            if name in lengths:
                if (rows, count) != (len(lengths[name]), sum(lengths[name])):
                    raise _unusable(
                        folder, f"manifest.json counts {rows} rows and {count} positions of {name}"
                    )
                own = slice(first_row, first_row + rows)
                self.numbers[name] = range(own.start, own.stop)
                self._own[own] = True
                self._lengths[own] = torch.tensor(lengths[name], device="cpu")
                self._starts[own] = first_position + self._lengths[own].cumsum(0) - self._lengths[own]
            first_row, first_position = first_row + rows, first_position + count

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(each.layer for each in self.manifest.layers)

    @property
    def positions(self) -> int:
        """Of the sections that are to be used."""
        return int(self._lengths.sum())

    @property
    def size(self) -> str:
        """Of their states on disk."""
        return _mebibytes(self.positions * self._position_bytes)

    def missing(self) -> Tensor:
        """The numbers of their sequences whose states are not there."""
        return (self._own & ~self._finished()).nonzero().squeeze(1)

    def missing_positions(self) -> int:
        return int(self._lengths[self.missing()].sum())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until no other process is here; the system takes a lock from a process that dies."""
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".lock").touch()
        with open(self.folder / ".lock", "r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                rank_zero_info(f"waiting for another process that writes to {self.folder}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def check_space(self) -> None:
        """Raises InputError where the disk cannot hold what is missing."""
        folder = next(each for each in (self.folder, *self.folder.absolute().parents) if each.exists())
        free, needed = disk_usage(folder).free, self.missing_positions() * self._position_bytes
        if needed > free:
            raise InputError(
                f"the reference's states need {_mebibytes(needed)} and the disk of {self.folder} has "
                f"{_mebibytes(free)} left: set model.reference.path to a folder elsewhere, or "
                "model.reference.dtype to bfloat16"
            )

    def prepare(self) -> None:
        """Makes the files that are not there yet."""
        with _writing(self.folder):
            if not (self.folder / "manifest.json").exists():
                self.manifest.write(self.folder)
            if self._checksum_file.exists():
                return
            for layer in self.manifest.layers:
                with open(self.folder / layer.file, "ab") as file:
                    file.truncate(self._positions * layer.position_bytes)
            with replacing(self._checksum_file) as temporary:
                self._checksums().numpy().tofile(temporary)

    def check(self) -> None:
        """Reads all that has been stored of the sections that are to be used.

        Raises:
            InputError: a file is missing, has another size, or holds something else than was written.
        """
        sizes = {each.file: self._positions * each.position_bytes for each in self.manifest.layers}
        sizes[self._checksum_file.name] = self._sequences * len(self.layers) * 8
        if not self._checksum_file.exists():
            return
        for name, size in sizes.items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                found = f"has {path.stat().st_size:,} bytes" if path.is_file() else "is missing"
                raise _unusable(self.folder, f"{name} {found}, and should have {size:,}")
        checksums = self._checksums().tolist()
        for column, layer in enumerate(self.manifest.layers):
            data = _bytes(self._map(layer))
            for name, numbers in self.numbers.items():
                for row, number in enumerate(numbers):
                    if UNFINISHED in checksums[number]:
                        continue
                    if zlib.crc32(data[self._span(number, layer)]) != checksums[number][column]:
                        raise _unusable(self.folder, f"{layer.file} is damaged at row {row} of {name}")

    def write(self, numbers: list[int], states: Mapping[Layer, Tensor]) -> None:
        """Stores the states of some sequences, and once they are on disk says that they are.

        What is there already stays: a kill would leave new states with the old ones' checksum.

        Args:
            numbers: the sequences.
            states: [N, d] of each layer, sequence after sequence.
        Raises:
            InputError: a state is not finite in the store's dtype.
        """
        finished = self._finished()[numbers].tolist()
        lengths = self._lengths[numbers].tolist()
        checksums = np.full((len(numbers), len(self.layers)), UNFINISHED)
        for column, layer in enumerate(self.manifest.layers):
            stored = states[layer.layer].to(layer.torch_dtype)
            if not stored.isfinite().all():
                raise InputError(
                    f"the reference's states for {layer.file} are not finite in {layer.dtype}: set "
                    "model.reference.dtype to float32, and if that does not help, the model is broken"
                )
            pieces = stored.cpu().split(lengths)
            with _writing(self.folder), open(self.folder / layer.file, "r+b") as file:
                for place, (number, piece) in enumerate(zip(numbers, pieces, strict=True)):
                    if not finished[place]:
                        data = _bytes(piece)
                        file.seek(self._span(number, layer).start)
                        file.write(data)
                        checksums[place, column] = zlib.crc32(data)
                file.flush()
                os.fsync(file.fileno())
        with _writing(self.folder), open(self._checksum_file, "r+b") as file:
            for place, number in enumerate(numbers):
                if not finished[place]:
                    file.seek(number * checksums[place].nbytes)
                    file.write(checksums[place].tobytes())

    def open(self) -> None:
        """Maps the files into memory, to be read."""
        self._mapped = {each.layer: self._map(each) for each in self.manifest.layers}

    def index(self, batch: Batch) -> Tensor:
        """[N] where in a file each of the batch's answer positions is.

        Raises:
            InputError: the batch's sequences are not those that were stored.
        """
        numbers = []
        for name, rows in batch.rows.items():
            known = self.numbers.get(name, range(0))
            if not all(0 <= row < len(known) for row in rows):
                raise InputError(
                    f"a batch has rows of {name!r} that {self.folder} has no states of: {_CONTRACT}"
                )
            numbers += [known[row] for row in rows]
        starts, lengths = self._starts[numbers], self._lengths[numbers]
        if lengths.tolist() != list(batch.lengths):
            raise InputError(
                f"a batch has answers of {list(batch.lengths)} tokens, and {self.folder} has {lengths.tolist()} "
                f"for the same rows: {_CONTRACT}"
            )
        within = torch.arange(sum(batch.lengths), device="cpu")
        return within + torch.repeat_interleave(starts + lengths - lengths.cumsum(0), lengths)

    def states(self, layer: Layer, index: Tensor, pinned: bool = False) -> Tensor:
        """[N, d] of a layer at `index`, on the CPU."""
        mapped = self._mapped[layer]
        shape = (len(index), mapped.shape[1])
        gathered = torch.empty(shape, dtype=mapped.dtype, device="cpu", pin_memory=pinned)
        return torch.index_select(mapped, 0, index, out=gathered)

    @property
    def _position_bytes(self) -> int:
        return sum(each.position_bytes for each in self.manifest.layers)

    @property
    def _checksum_file(self) -> Path:
        return self.folder / "checksums.bin"

    def _checksums(self) -> Tensor:
        """[sequences, layers]"""
        shape = (self._sequences, len(self.layers))
        if not self._checksum_file.exists():
            return torch.full(shape, UNFINISHED, dtype=torch.long, device="cpu")
        return torch.from_numpy(np.fromfile(self._checksum_file, dtype=np.int64)).view(shape)

    def _finished(self) -> Tensor:
        """[sequences]"""
        return (self._checksums() != UNFINISHED).all(dim=1)

    def _span(self, number: int, layer: LayerFormat) -> slice:
        """The bytes of a sequence in a layer's file."""
        start, length = int(self._starts[number]), int(self._lengths[number])
        return slice(start * layer.position_bytes, (start + length) * layer.position_bytes)

    def _map(self, layer: LayerFormat) -> Tensor:
        # Not shared, or the file would have to be writable.
        size = self._positions * layer.width
        path = str(self.folder / layer.file)
        mapped = torch.from_file(path, shared=False, size=size, dtype=layer.torch_dtype, device="cpu")
        return mapped.view(self._positions, layer.width)


_CONTRACT = "the data module's training_sequences must be those that it makes batches of"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, WriteError) as error:
        raise InputError(
            f"cannot write the reference's states to {folder} ({error.strerror}): set model.reference.path to "
            "another folder"
        ) from error


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _bytes(states: Tensor) -> memoryview:
    return states.contiguous().flatten().view(torch.uint8).numpy().data


def _unusable(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder} holds no stored states that can be used ({why}): give model.reference.path another folder, "
        "or remove that one"
    )
