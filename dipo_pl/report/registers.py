"""Registers of requests: who asked for what when, and what came of it, as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipo_pl.report.run import printable
from dipo_pl.report.table import Table
from dipo_pl.storage.register import read_register

_COLUMNS = (
    "stage",
    "request",
    "id",
    "received",
    "decided",
    "decision",
    "by",
    "finished",
    "model_after",
    "verdict",
    "audit",
)


@dataclass(frozen=True)
class Register:
    """Register of a sequence.

    Attributes:
        name: of the sequence.
        entries: in order; a later one of a stage says what is new of it.
    """

    name: str
    entries: tuple[Mapping[str, Any], ...]


def registers_of(folders: Sequence[Path]) -> list[Register]:
    """Return the registers in some folders of sequences.

    Raises:
        InputError: one is damaged.
    """
    found = ((each, read_register(each)) for each in folders if each.is_dir())
    return [Register(printable(path.resolve().name), tuple(entries)) for path, entries in found if entries]


def register_table(register: Register) -> Table:
    """Return a row for each stage: the last entry of each."""
    last = {each["stage"]: each for each in register.entries}
    shown = [key for key in _COLUMNS if any(each.get(key) is not None for each in last.values())]
    rows = [[_cell(key, last[stage].get(key)) for key in shown] for stage in sorted(last)]
    head = [each.replace("_", " ") for each in shown]
    caption = "Requests as they were carried out; models by the first digits of their fingerprints."
    return Table(f"Register of {register.name}", caption, head, rows, labels=len(head))


def _cell(key: str, value: object) -> str:
    text = "" if value is None else printable(str(value))
    # A fingerprint is told by its first digits, a time by its minute.
    return text[:12] if key == "model_after" else text[:16].replace("T", " ") if key == "finished" else text
