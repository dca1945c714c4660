"""The run folder: the path of each file that a run writes, its manifest and its metrics."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipo_pl.errors import InputError
from dipo_pl.paths import expanded
from dipo_pl.storage.files import write_text

# Bytes. File systems allow 255; names of probes and temporary files are longer than the run's.
LONGEST_NAME = 200


class RunFolder:
    """Folder of one run; TensorBoard events are in the folder itself.

    Args:
        path: the folder; a trainer's `default_root_dir`.

    Attributes:
        path: the folder.
        config: the run's config.
        manifest: JSON of how the run was made and how it ended.
        metrics: a JSON object a line, one line an evaluation.
        evaluation: folder of the values of every row, a file an evaluation.
        checkpoints: folder of checkpoints.
        last_checkpoint, previous_checkpoint: the newest one and the one before.
        hf: the exported model.
        reference: hidden states of the reference; a start that fails leaves them, since the next one resumes with them.
        error_log: traceback of the error that ended the run.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(expanded(str(path)))
        self.config = self.path / "config.yaml"
        self.manifest = self.path / "manifest.json"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluation = self.path / "evaluation"
        self.checkpoints = self.path / "checkpoints"
        self.last_checkpoint = self.checkpoints / "last.ckpt"
        self.previous_checkpoint = self.checkpoints / "previous.ckpt"
        self.hf = self.path / "hf"
        self.reference = self.path / "reference"
        self.error_log = self.path / "error.log"

    @property
    def to_resume_from(self) -> list[Path]:
        """The existing checkpoints, files or folders of shards, newest first."""
        return [each for each in (self.last_checkpoint, self.previous_checkpoint) if each.exists()]

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest, empty where there is none; raise InputError if manifest.json is a folder."""
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}
        except IsADirectoryError:
            raise InputError(f"{self.manifest} is a folder: remove it, or give another --name") from None
        return manifest if isinstance(manifest, dict) else {}

    def add_to_manifest(self, **entries: Any) -> None:
        """Add entries to the manifest, or replace those of the same names."""
        write_text(self.manifest, json.dumps(self.read_manifest() | entries, indent=2) + "\n")

    @property
    def final_step(self) -> int | None:
        """The step of the evaluation that counts for the run: of the weights that it exported, else the last one.

        None where these were not evaluated, whatever other steps were.
        """
        exported: int | None = self.read_manifest().get("exported_step")
        steps: list[int] = [each["step"] for each in self.read_metrics()]
        return max(steps, default=None) if exported is None else exported if exported in steps else None

    @property
    def lack(self) -> str:
        """The evaluation that a run without a final step lacks, as an object of a sentence."""
        if (step := self.read_manifest().get("exported_step")) is not None and self.read_metrics():
            return f"no evaluation of step {step}, whose weights it exported"
        return f"no evaluation ({self.metrics.name} is missing or empty)"

    @property
    def final_metrics(self) -> dict[str, Any]:
        """The metrics of the evaluation that counts for the run; empty where there is none."""
        step = self.final_step
        return next((each for each in self.read_metrics() if each["step"] == step), {})

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return one record for each evaluation, in order of steps; raise InputError if a line is not such a record."""
        if self.metrics.is_dir():
            raise InputError(f"{self.metrics} is a folder: remove it, or give another --name")
        if not self.metrics.is_file():
            return []
        records = []
        for number, line in enumerate(self.metrics.read_bytes().splitlines(), start=1):
            try:
                record = json.loads(line)
                record["step"] = int(record["step"])
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{self.metrics}, line {number} is not an evaluation: remove that line, or the folder"
                ) from None
            records.append(record)
        return records

    def evaluation_file(self, step: int) -> Path:
        """Return the file with the values of every row at this step."""
        return self.evaluation / f"step-{step:06d}.json"

    def add_evaluation(
        self, step: int, record: Mapping[str, Any], text: str, last_step: int | None = None
    ) -> None:
        """Add an evaluation to metrics.jsonl and write its file, in place of one of the same step.

        Those of steps after `last_step` were left by an interrupted run, and are removed.

        Args:
            step: optimizer steps behind the weights that were evaluated.
            record: the line of metrics.jsonl, which has this `step`.
            text: content of the file in evaluation/, with the values of every row.
            last_step: the last step that was trained; None is `step`.
        """
        last_step = step if last_step is None else last_step
        for path in self.evaluation.glob("step-*.json"):
            if int(path.stem.removeprefix("step-")) > last_step:
                path.unlink()
        write_text(self.evaluation_file(step), text)
        others = [each for each in self.read_metrics() if each["step"] != step and each["step"] <= last_step]
        records = sorted([*others, record], key=lambda each: int(each["step"]))
        write_text(self.metrics, "".join(json.dumps(each) + "\n" for each in records))

    def add_to_evaluation(self, step: int, others_stay: bool = False, **entries: Any) -> None:
        """Add entries to the line of metrics.jsonl of this step, in place of those of the same names.

        Args:
            step: of the line.
            others_stay: keep those of the same names in other lines; else only this one has them afterwards.
            entries: by name.
        """
        records = [
            each | entries
            if each["step"] == step
            else {name: value for name, value in each.items() if others_stay or name not in entries}
            for each in self.read_metrics()
        ]
        # A run without evaluations has no such file.
        if records:
            write_text(self.metrics, "".join(json.dumps(each) + "\n" for each in records))


def exported_weights(manifest: Mapping[str, Any]) -> str | None:
    """Return the fingerprint of the model in hf/ as a run that starts from it records it; None if it is not known.

    Manifests of earlier versions have only that of the last weights.
    """
    known: str | None = manifest.get("exported_weights") or (manifest.get("policy") or {}).get(
        "weights_at_end"
    )
    return known


def forgotten_sets(manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of the evaluation sets that a run is to forget; see `ForgetRetain.forgotten`.

    Of the manifest of an earlier version it is the latest request, or `forget` if there are no requests.
    """
    if (known := manifest.get("to_forget")) is not None:
        return list(known)
    sets = (manifest.get("data") or {}).get("evaluation") or {}
    places = [int(found[1]) for each in sets if (found := re.fullmatch(r"request_(\d+)", each))]
    return [f"request_{max(places)}" if places else "forget"]


def check_name(name: str) -> None:
    """Refuse a name that is not one of a single folder.

    Raises:
        InputError: the name is empty, has more than one part, or is longer than 200 bytes.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise InputError(f"--name must be the name of one folder (got {name!r}); --output_dir says where")
    if (size := len(os.fsencode(name))) > LONGEST_NAME:
        raise InputError(f"--name must have at most {LONGEST_NAME} bytes (got {size}: {name[:20]}...)")
