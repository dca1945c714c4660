"""Signature over the files of a run's folder: who holds the key vouches that they are as they were signed."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dipo_pl.errors import InputError
from dipo_pl.storage.files import write_text

FILE = "signature.json"
# Files that are signed if they are there: how a run was made, its figures, and the exported model.
SIGNED = ("config.yaml", "manifest.json", "metrics.jsonl", "rows.json", "evaluation", "attacks", "hf")


@dataclass(frozen=True)
class Check:
    """Result of checking the signature of a folder.

    Attributes:
        key: the public key, as hexadecimal digits.
        signed: when it was signed, as the signature says.
        valid: the signature is of this key.
        as_signed: files that are as they were signed.
        changed: files with another content.
        missing: files that are gone.
        added: files that came later.
    """

    key: str
    signed: str
    valid: bool
    as_signed: tuple[str, ...]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """True if the signature is valid and everything is as it was signed."""
        return self.valid and not (self.changed or self.missing or self.added)


def is_signed(folder: Path) -> bool:
    """Return whether a folder has a signature, of whatever it is."""
    return (folder / FILE).exists()


def refuse_signed(folder: Path) -> None:
    """Refuse a signed folder, which a command would change.

    Raises:
        InputError: the folder is signed.
    """
    if is_signed(folder):
        raise InputError(
            f"{folder} is signed, and this would change it: remove {folder / FILE}, and sign it again afterwards"
        )


def sign(folder: Path, key: Path) -> int:
    """Write the signature of a folder's files by an Ed25519 key; return the number of files.

    The signature is over a JSON object of the SHA-256 of each file by its path, and the time.

    Source: RFC 8032, by the package cryptography.

    Args:
        folder: a run's folder.
        key: file of the private key, PEM without a password.

    Raises:
        InputError: cryptography is not installed, or the file holds no such key.
        WriteError: the signature cannot be written.
    """
    private = _private_key(key)
    files = _digests(folder)
    signed = datetime.now(UTC).isoformat(timespec="seconds")
    content = {
        "algorithm": "ed25519",
        "public_key": private.public_key().public_bytes_raw().hex(),
        "signed": signed,
        "files": files,
        "signature": private.sign(_message(files, signed)).hex(),
    }
    write_text(folder / FILE, json.dumps(content, indent=1) + "\n")
    return len(files)


def check(folder: Path, key: Path | None = None) -> Check:
    """Compare a folder with its signature.

    Args:
        folder: a run's folder.
        key: file of the public key, PEM; None takes the one that the signature names, which proves only that nothing was
            changed by those who do not have its private key.

    Raises:
        InputError: there is no readable signature, or it is of another key, or cryptography is not installed.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files, signed = dict(content["files"]), str(content["signed"])
        public, signature = bytes.fromhex(content["public_key"]), bytes.fromhex(content["signature"])
    except FileNotFoundError:
        raise InputError(
            f"{folder} is not signed (no {FILE}): dipo-pl sign {folder} --key FILE signs it"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no signature ({error!r}): sign the folder again") from None
    if key is not None and _public_key(key) != public:
        raise InputError(f"{path} was made with another key than {key}: give that one's public key")
    now = _digests(folder)
    return Check(
        public.hex(),
        signed,
        _is_valid(public, signature, _message(files, signed)),
        tuple(name for name, each in files.items() if now.get(name) == each),
        tuple(name for name, each in files.items() if name in now and now[name] != each),
        tuple(name for name in files if name not in now),
        tuple(name for name in now if name not in files),
    )


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each signed file by its path in the folder."""
    found: dict[str, str] = {}
    for name in SIGNED:
        top = folder / name
        for path in _files(top) if top.is_dir() else [top]:
            if path.is_file():
                with path.open("rb") as file:
                    found[path.relative_to(folder).as_posix()] = hashlib.file_digest(
                        file, "sha256"
                    ).hexdigest()
    return found


def _files(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder in order, also of folders that are links; a folder in a circle of links once."""
    seen: set[str] = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(path)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(path, name) for name in sorted(names))


def _message(files: dict[str, str], signed: str) -> bytes:
    return json.dumps({"files": files, "signed": signed}, sort_keys=True).encode()


def _private_key(path: Path) -> Any:
    serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"--key {path} cannot be read ({' '.join(str(error).split())[:120]}): {_HOW}"
        ) from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise InputError(f"--key {path} is no Ed25519 key: {_HOW}")
    return key


def _public_key(path: Path) -> bytes:
    serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"--key {path} cannot be read ({' '.join(str(error).split())[:120]}): give the public key as PEM, as of "
            "openssl pkey -in KEY -pubout"
        ) from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise InputError(f"--key {path} is no Ed25519 key: give the public key of the one that signed")
    return bytes(key.public_bytes_raw())


def _is_valid(public: bytes, signature: bytes, message: bytes) -> bool:
    _, ed25519 = _cryptography()
    from cryptography.exceptions import InvalidSignature

    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise InputError(f"signatures need cryptography ({error}): pip install 'dipo-pl[sign]'") from error
    return serialization, ed25519


_HOW = "give a private key as PEM without a password, as of openssl genpkey -algorithm ed25519 -out KEY"
