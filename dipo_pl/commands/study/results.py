"""The file results.json of a study: a record of every run, from which the report is made."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from dipo_pl.errors import InputError
from dipo_pl.storage.files import write_text

FINISHED, RUNNING, FAILED = "finished", "running", "failed"
Record = dict[str, Any]


@dataclass
class Results:
    """Content of results.json, which is written whole after every change.

    Attributes:
        path: the file.
        study: the study's name, its file's content, and the names of its rows in order.
        runs: a record of each run by key.
    """

    path: Path
    study: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the results in a folder, empty where there are none.

        Raises:
            InputError: the file cannot be read.
        """
        path = folder / "results.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                path, dict(content["study"]), {key: dict(each) for key, each in content["runs"].items()}
            )
        except (FileNotFoundError, NotADirectoryError):
            return cls(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"cannot read the results in {path} ({' '.join(str(error).split())}): restore the file, or give another "
                "--results"
            ) from None

    def finished(self, key: str) -> Record | None:
        """Return the record of a run if it is finished."""
        record = self.runs.get(key)
        return record if record is not None and record.get("status") == FINISHED else None

    def put(self, key: str, record: Record) -> None:
        """Add or replace a record, and write the file; raise WriteError if it cannot be written."""
        self.runs[key] = record
        self.save()

    def save(self) -> None:
        """Write the file; raise WriteError if it cannot be written."""
        content = {"study": self.study, "runs": dict(sorted(self.runs.items()))}
        write_text(self.path, json.dumps(content, indent=1) + "\n")
