"""Memory of finished parts of attacks in files, so that a killed audit does not repeat them."""

import json
from collections.abc import Callable, Collection
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
        found = [_content(self.folder / f"{name}.json") if _rank() == 0 else {}]
        if dist.is_initialized():
            dist.broadcast_object_list(found)
        (content,) = found
        return content if content.get("identity") == self.identity and "value" in content else None


def remove_others(folder: Path, identities: Collection[str]) -> None:
    """Remove the parts in a folder that were made from something else, and damaged ones."""
    for path in folder.glob("*.json"):
        if _content(path).get("identity") not in identities:
            path.unlink()


def _content(path: Path) -> dict[str, Any]:
    """Return the content of a part's file, empty where there is none or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
