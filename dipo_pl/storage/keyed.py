"""Keyed fingerprints of rows: equal rows have equal ones, and nobody without the key can guess a row by trying."""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from dipo_pl.errors import InputError
from dipo_pl.rows import Row
from dipo_pl.storage.files import writing

SIZE = 32


def read_key(path: Path, forbidden: Iterable[Path]) -> bytes:
    """Return the key in a file; a file that does not exist is made with a random one, which only its owner may read.

    Args:
        path: the file, 64 hexadecimal digits.
        forbidden: folders that the key must not lie in, since they are handed on.

    Raises:
        InputError: the file is in such a folder or in none, or holds something else.
        WriteError: it cannot be written.
    """
    for folder in forbidden:
        if folder.resolve() in path.resolve().parents:
            raise InputError(f"--key {path} is in {folder}, which may be handed on: give a file elsewhere")
    if not path.parent.is_dir():
        raise InputError(f"--key {path}: there is no folder {path.parent}: make it, or give another file")
    if not path.exists():
        with writing(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(SIZE) + "\n")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        key = b""
    if len(key) != SIZE:
        raise InputError(
            f"--key {path} must hold {2 * SIZE} hexadecimal digits: give a file that dipo-pl has made"
        )
    return key


def row_fingerprint(key: bytes, row: Row) -> str:
    """Return HMAC-SHA256 of the row's messages and answer under the key, as hexadecimal digits.

    Source: RFC 2104.
    """
    text = json.dumps(row.conversation, ensure_ascii=False)
    return _digest(key, f"row {text}")


def key_check(key: bytes) -> str:
    """Return a value by which a key is recognized, and that tells nothing of it."""
    return _digest(key, "key")


def _digest(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
