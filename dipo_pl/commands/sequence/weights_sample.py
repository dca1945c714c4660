"""Whether the weights in a model folder are still those that a stage started from."""

import hashlib
from pathlib import Path

# Read of each end of each file: a model that was trained anew differs nearly everywhere.
SAMPLE = 2**20


def weights_sample(folder: Path) -> str | None:
    """SHA-256 of the size and both ends of each of the folder's weights files; None where it has none."""
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
