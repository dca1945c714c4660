"""Atomic writes: files and folders that are whole or absent, and the lock of a folder."""

import errno
import fcntl
import glob
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from dipo_pl.errors import InputError, WriteError, causes

# First bytes of the text that Git leaves in place of a large file that it has not fetched.
LFS_POINTER = b"version https://git-lfs"
NOT_FETCHED = "a pointer of Git LFS, not the file: fetch it with git lfs pull"


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all; raise WriteError if the file cannot be written; the old one stays."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is synced and renamed to `path`.

    Raises:
        WriteError: the file cannot be written; the old one stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success its files are synced and it is renamed to `path`.

    `path` is the old folder or the new one, never a mixture. Between two renames it is neither; the old folder is then
    beside it under a hidden name, and the next call restores it.

    Raises:
        WriteError: the folder cannot be written; the old one stays.
    """
    temporary, old = (path.with_name(f".{path.name}.{suffix}") for suffix in ("tmp", "old"))
    with writing(path):
        if old.exists() and not path.exists():
            # A process was killed between the two renames.
            old.rename(path)
        _remove_leftovers(path)
        remove(old)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            # Some libraries make their files readable to the owner alone.
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
            remove(temporary)
        remove(old)


@contextmanager
def locked(folder: Path, option: str = "--name") -> Iterator[None]:
    """Lock a folder against other processes that lock it in this way; a killed process leaves no lock.

    On a file system without locks it prints a warning and locks nothing. A folder that is made for this is removed if the
    input is refused before anything is written there.

    Args:
        folder: the folder, which is made where there is none.
        option: the option that names another one.

    Raises:
        InputError: another process holds the lock, or there is a file in place of the folder or of one above it.
        WriteError: the folder cannot be written to.
    """
    lock, made = folder / ".lock", not folder.exists()
    with writing(lock):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            file_there = next((each for each in (folder, *folder.parents) if each.is_file()), folder)
            raise InputError(
                f"cannot make the folder {folder}, since {file_there} is a file: give another {option}"
            ) from None
        except FileNotFoundError as error:
            raise InputError(
                f"cannot make the folder {folder} ({error.strerror}): give another {option}"
            ) from None
        file = lock.open("a")
    with file:
        # A data loader's workers may outlive a killed process and must not keep its lock.
        os.register_at_fork(after_in_child=file.close)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder} is used by another process: wait until it has ended, or give another {option}"
            ) from None
        except OSError as error:
            print(
                f"dipo-pl: warning: cannot lock {folder} ({error.strerror}): make sure that no other process uses it",
                file=sys.stderr,
            )
        # Only who holds the lock may remove the folder.
        with _removed_if_refused(folder, lock) if made else nullcontext():
            yield


@contextmanager
def _removed_if_refused(folder: Path, lock: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        if [*folder.iterdir()] == [lock]:
            remove(folder)
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into a WriteError that names `path`.

    Raises:
        WriteError: the operating system refused a call.
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


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_lfs_pointer(path: Path) -> None:
    """Raise an InputError if a file is the text that Git leaves in place of a large file; nothing if it cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(f"{path} is {NOT_FETCHED}")


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of killed processes: one of a checkpoint is as large as the checkpoint."""
    for each in path.parent.glob(f".{glob.escape(path.name)}.*tmp"):
        if not _is_in_use(each):
            remove(each)


def _is_in_use(temporary: Path) -> bool:
    """Return whether another running process of this machine writes this temporary file."""
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


def _system_error(error: BaseException) -> OSError | None:
    """Return the first OSError behind an error; torch and safetensors wrap it in errors of their own."""
    for each in causes(error):
        # A file that does not exist was to be read.
        if isinstance(each, OSError) and each.errno not in (None, errno.ENOENT):
            return each
        stated = re.search(r"\(os error (\d+)\)", str(each))
        if stated is not None:
            return OSError(int(stated[1]), os.strerror(int(stated[1])))
    return None
