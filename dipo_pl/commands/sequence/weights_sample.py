"""Fingerprint that tells whether the weights in a model folder have changed, without reading them completely."""

import hashlib
from pathlib import Path

# Bytes read of each end of a file: training changes nearly all weights.
SAMPLE = 2**20


def weights_sample(folder: Path) -> str | None:
    """Return the SHA-256 of names, sizes and both ends of the *.safetensors files; None if there are none."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE))
            file.seek(max(0, size - SAMPLE))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest() if files else None
