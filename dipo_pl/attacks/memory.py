"""Memory of finished parts of attacks in files, so that a killed audit does not repeat them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dipo_pl.attacks.subject import Memory
from dipo_pl.storage.files import write_text


class FileMemory(Memory):
    """Memory whose parts are JSON files in a folder, each whole or absent.

    Args:
        folder: where the files are; made with the first one.
        identity: what parts were made from; a part of another identity is made again.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        super().__init__()
        self.folder = folder
        self.identity = identity

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a part from its file; it is made and written if there is none. All ranks call this together.

        Raises:
            WriteError: the file cannot be written.
        """
        known = self._read(name)
        if known is None:
            known = {"identity": self.identity, "value": make()}
            if _rank() == 0:
                write_text(self.folder / f"{name}.json", json.dumps(known) + "\n")
            # Read from a file again, a tuple is a list.
            known = json.loads(json.dumps(known))
        return known["value"]

    def _read(self, name: str) -> dict[str, Any] | None:
        """Return the content of a part's file as rank 0 reads it, on every rank; None if it is to be made."""
        found: list[Any] = [None]
        if _rank() == 0:
            try:
                found = [json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))]
            except (OSError, ValueError):
                found = [None]
        if dist.is_initialized():
            dist.broadcast_object_list(found)
        (content,) = found
        fits = isinstance(content, dict) and content.get("identity") == self.identity and "value" in content
        return content if fits else None


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
