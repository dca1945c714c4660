"""Register of requests to forget: a line for each that was carried out, to which lines are only ever added."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipo_pl.errors import InputError
from dipo_pl.storage.files import write_text

FILE = "register.jsonl"


def read_register(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of a folder's register in order; nothing where there is none.

    Raises:
        InputError: a line is no entry.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    entries = []
    # Bytes are split, since a text may hold other marks that end a line, such as U+2028.
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            entry = json.loads(line)
            entry["stage"] = int(entry["stage"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}, line {number} is no entry of a register: restore the file") from None
        entries.append(entry)
    return entries


def add_to_register(folder: Path, entry: Mapping[str, Any]) -> bool:
    """Add an entry, unless it is what the last one of its stage says already; return whether it was added.

    Raises:
        InputError: the register is damaged.
        WriteError: it cannot be written; it is as it was.
    """
    entries = read_register(folder)
    last = next((each for each in reversed(entries) if each["stage"] == entry["stage"]), None)
    if last == entry:
        return False
    lines = [*entries, entry]
    write_text(folder / FILE, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines))
    return True
