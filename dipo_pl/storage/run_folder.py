"""The run folder: where each thing that a run leaves behind lies, written whole or not at all."""

import errno
import fcntl
import glob
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dipo_pl.errors import InputError, WriteError, causes

if TYPE_CHECKING:
    from lightning import Trainer

# Bytes of a run's name: filesystems take 255, and those of probes and temporary files are longer.
LONGEST_NAME = 200


@dataclass(frozen=True)
class RunFolder:
    """Names of all that a run writes; TensorBoard events lie in the folder itself."""

    path: Path

    @classmethod
    def of(cls, trainer: "Trainer") -> Self:
        """The folder of the run that a trainer is in: its default_root_dir."""
        return cls(Path(trainer.default_root_dir))

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        return self.checkpoints / "previous.ckpt"

    def replace_checkpoint(self, new: Path, keep: bool) -> None:
        """Puts a new checkpoint in the last one's place, which becomes the previous one, or is not kept.

        Raises:
            WriteError: it cannot.
        """
        with writing(self.last_checkpoint):
            self._replace_checkpoint(new, keep)

    def _replace_checkpoint(self, new: Path, keep: bool) -> None:
        aside = self.checkpoints / ".replaced"
        _remove(aside)
        # A folder cannot be renamed to one that is there: at every moment in between one of the two names has a whole one.
        stands_in = keep or not self.previous_checkpoint.exists()
        if self.last_checkpoint.exists():
            if not stands_in:
                os.replace(self.last_checkpoint, aside)
            else:
                if self.previous_checkpoint.exists():
                    os.replace(self.previous_checkpoint, aside)
                os.replace(self.last_checkpoint, self.previous_checkpoint)
        os.replace(new, self.last_checkpoint)
        sync(self.checkpoints)
        _remove(aside)
        if stands_in and not keep:
            _remove(self.previous_checkpoint)

    def remove_previous_checkpoint(self) -> None:
        _remove(self.previous_checkpoint)

    @property
    def to_resume_from(self) -> list[Path]:
        """The checkpoints that are there, files or folders of shards, the newest first."""
        return [each for each in (self.last_checkpoint, self.previous_checkpoint) if each.exists()]

    @property
    def hf(self) -> Path:
        return self.path / "hf"

    @property
    def reference(self) -> Path:
        """States of the reference; a start that fails leaves them, since the next one goes on with them."""
        return self.path / "reference"

    @property
    def error_log(self) -> Path:
        return self.path / "error.log"

    def read_manifest(self) -> dict[str, Any]:
        """The manifest, or nothing where there is none."""
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}
        except IsADirectoryError:
            raise InputError(f"{self.manifest} is a folder: remove it, or give another --name") from None
        return manifest if isinstance(manifest, dict) else {}

    def add_to_manifest(self, **entries: Any) -> None:
        """Adds to the manifest, or replaces what stands there under these names."""
        write_text(self.manifest, json.dumps(self.read_manifest() | entries, indent=2) + "\n")

    @property
    def result_step(self) -> int | None:
        """The step of the evaluation that speaks for the run: of the exported weights, else the last one."""
        records = self.read_metrics()
        exported = self.read_manifest().get("exported_step")
        steps: list[int] = [each["step"] for each in records]
        return exported if exported in steps else max(steps, default=None)

    @property
    def figures(self) -> dict[str, Any]:
        """Of the evaluation that speaks for the run; nothing where there is none."""
        step = self.result_step
        return next((each for each in self.read_metrics() if each["step"] == step), {})

    def read_metrics(self) -> list[dict[str, Any]]:
        """One object an evaluation, in order of steps.

        Raises:
            InputError: a line is not such an object.
        """
        if self.metrics.is_dir():
            raise InputError(f"{self.metrics} is a folder: remove it, or give another --name")
        if not self.metrics.is_file():
            return []
        records = []
        for number, line in enumerate(self.metrics.read_bytes().splitlines(), start=1):
            try:
                record = json.loads(line)
                record["step"] = int(record["step"])
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{self.metrics}, line {number} is not an evaluation: remove that line, or the folder"
                ) from None
            records.append(record)
        return records

    def evaluation_file(self, step: int) -> Path:
        return self.evaluation / f"step-{step:06d}.json"

    def add_evaluation(self, step: int, record: Mapping[str, Any], text: str) -> None:
        """Add an evaluation to metrics.jsonl and write its file.

        It replaces one of the same step, and those of later steps, which an interrupted run has left.

        Args:
            step: optimizer steps behind the weights that were evaluated.
            record: the line of metrics.jsonl, which has this `step`.
            text: content of the file in evaluation/, with the values of every row.
        """
        for path in self.evaluation.glob("step-*.json"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()
        write_text(self.evaluation_file(step), text)
        earlier = [each for each in self.read_metrics() if each["step"] < step]
        write_text(self.metrics, "".join(json.dumps(each) + "\n" for each in [*earlier, record]))


def refuse_unfit_name(name: str) -> None:
    """
    Raises:
        InputError: a run's folder cannot be called so.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise InputError(f"--name must be the name of one folder, got {name!r}; --output_dir says where")
    if (size := len(os.fsencode(name))) > LONGEST_NAME:
        raise InputError(f"--name must have at most {LONGEST_NAME} bytes, got {size} ({name[:20]}...)")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path in the same folder; on success it is made durable and takes `path`'s place.

    Raises:
        WriteError: it cannot be written; what stood at `path` still does.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # What kills have left: of a checkpoint, as many bytes as it has itself.
        for leftover in _left(path):
            _remove(leftover)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """As `replacing`, of a folder: `path` is the old one or the new one, never a mixture.

    Between two renames it is neither; then the old one lies beside it under a hidden name.
    """
    temporary, old = (path.with_name(f".{path.name}.{suffix}") for suffix in ("tmp", "old"))
    with writing(path):
        if old.exists() and not path.exists():
            # A kill came between the two renames.
            old.rename(path)
        for leftover in (*_left(path), old):
            _remove(leftover)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            # Libraries leave some of their files to their owner alone.
            readable = temporary.stat().st_mode & 0o666
            for each in (*temporary.rglob("*"), temporary):
                if each.is_file():
                    each.chmod(readable)
                sync(each)
            if path.exists():
                path.rename(old)
            temporary.rename(path)
            sync(path.parent)
        finally:
            if old.exists() and not path.exists():
                old.rename(path)
            _remove(temporary)
        _remove(old)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder, those that ask for it in this way; a process that is killed leaves no lock.

    On a filesystem that has no locks it says so, and keeps nobody out.

    Raises:
        InputError: another one is in it.
        WriteError: nothing can be written to it.
    """
    lock = folder / ".lock"
    with writing(lock):
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    with file:
        # Workers of a data loader, which may outlive a process that is killed, do not keep it.
        os.register_at_fork(after_in_child=file.close)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder} is being worked on by another process: wait for it to end, or give another --name"
            ) from None
        except OSError as error:
            print(
                f"dipo-pl: warning: cannot lock {folder} ({error.strerror}): let no other process work on it meanwhile",
                file=sys.stderr,
            )
        yield


def write_text(path: Path, text: str) -> None:
    """Writes a file that is never seen half-written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _left(path: Path) -> list[Path]:
    """Temporary files and folders of `path` that no one will rename."""
    left = path.parent.glob(f".{glob.escape(path.name)}.*tmp")
    return [each for each in left if not _is_written(each)]


def _is_written(temporary: Path) -> bool:
    """Whether another process of this machine is at it."""
    number = temporary.name.removesuffix(".tmp").rpartition(".")[2]
    if not number.isdigit() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _remove(path: Path) -> None:
    """A file, a folder or nothing."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """
    Raises:
        WriteError: the system refuses what is done within; `path` is what the message names.
    """
    try:
        yield
    except (InputError, WriteError):
        raise
    except Exception as error:
        cause = _system_error(error)
        if cause is None:
            raise
        raise WriteError(path, cause) from error


def _system_error(error: BaseException) -> OSError | None:
    """The first failure of the system behind an error: torch and safetensors report it as one of their own."""
    for each in causes(error):
        # What is not there was to be read.
        if isinstance(each, OSError) and each.errno not in (None, errno.ENOENT):
            return each
        stated = re.search(r"\(os error (\d+)\)", str(each))
        if stated is not None:
            return OSError(int(stated[1]), os.strerror(int(stated[1])))
    return None


def sync(path: Path) -> None:
    """Makes a file or a folder's entries durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
