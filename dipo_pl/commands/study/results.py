"""The file results.json of a study: a record of every run, from which the report is made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from dipo_pl.commands.study.plan import Kind
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
        advice = "restore the file, or remove it, and the study makes its runs again"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return cls(path)
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
            raise InputError(f"cannot read the results in {path} ({cause}): {advice}") from None
        try:
            return cls(
                path, dict(content["study"]), {key: dict(each) for key, each in content["runs"].items()}
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{path} does not hold the results of a study, study and runs: {advice}"
            ) from None

    @property
    def current(self) -> dict[str, Record]:
        """The records of runs that the study's file has; those of an earlier file are kept, and do not count."""
        return {key: each for key, each in self.runs.items() if self._is_current(each)}

    def seed_of(self, kind: Kind, seed: int) -> int:
        """Return the seed of the target, or else of the retain-only model, that runs of this seed have."""
        shared = (self._model(kind) or {}).get("seed")
        return seed if shared is None else int(shared)

    def _model(self, kind: Kind) -> dict[str, Any] | None:
        name = Kind.TARGET if kind is Kind.TARGET else Kind.RETAIN_ONLY
        found: dict[str, Any] | None = self.study["file"][name]
        return found

    def _is_current(self, record: Record) -> bool:
        file, kind, row, seed = self.study["file"], Kind(record["kind"]), record["row"], record["seed"]
        rates = file["learning_rate"] or {"seeds": [], "values": []}
        if kind is Kind.TUNING:
            tuned = [each["name"] for each in file["rows"] if each["tune"]]
            tried = [float(each) for each in rates["values"]]
            return row in tuned and seed in rates["seeds"] and record["learning_rate"] in tried
        if kind.is_probe and kind not in file["after"]:
            return False
        if row is not None:
            return row in self.study["rows"] and seed in file["seeds"]
        seeds = {self.seed_of(kind, each) for each in (*file["seeds"], *rates["seeds"])}
        return self._model(kind) is not None and seed in seeds

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


def has_other_weights(record: Record, again: Mapping[str, Any]) -> bool:
    """Return whether a model that was made again has other weights than that of its record, where both are known."""
    first, second = ((each.get("weights") or {}).get("weights_at_end") for each in (record, again))
    return None not in (first, second) and first != second
