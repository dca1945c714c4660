"""Keyed fingerprints of an audit's rows, by which the owner of the key can tell what was audited."""

import json
from collections.abc import Sequence

from dipo_pl.errors import InputError
from dipo_pl.rows import Row
from dipo_pl.storage.files import write_text
from dipo_pl.storage.keyed import key_check, row_fingerprint
from dipo_pl.storage.run_folder import RunFolder

FILE = "rows.json"


def check_key(folder: RunFolder, key: bytes | None) -> None:
    """Refuse another key than the one of an audit that is there already, or none where there was one.

    Raises:
        InputError: the key is another one, or missing.
    """
    path = folder.path / FILE
    if not path.is_file():
        return
    if key is None:
        raise InputError(
            f"{path} has the rows' fingerprints of an audit with --key, which may not be these rows': give that --key, or "
            "remove it"
        )
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        # It is written again.
        return
    if known != key_check(key):
        raise InputError(f"--key is not the key that {path} was made with: give that one, or remove {path}")


def write_fingerprints(folder: RunFolder, key: bytes, rows: Sequence[Row]) -> None:
    """Write the fingerprint of each row, in the order of the audit's row numbers."""
    content = {"key": key_check(key), "rows": [row_fingerprint(key, row) for row in rows]}
    write_text(folder.path / FILE, json.dumps(content, indent=1) + "\n")
