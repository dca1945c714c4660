"""Stages of a sequence: the options of their runs, and checks of what is in their folders."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dipo_pl.cli.command_parser import as_options
from dipo_pl.commands.sequence.requests_file import RequestsFile
from dipo_pl.errors import InputError
from dipo_pl.models.gguf_path import weight_files
from dipo_pl.paths import expanded
from dipo_pl.storage.run_folder import RunFolder

# Bytes read of each end of a file: training changes nearly all weights.
SAMPLE = 2**20


def weights_sample(model: Path, gguf_file: str | None = None) -> str | None:
    """Return the SHA-256 of names, sizes and both ends of the *.safetensors files, or of the GGUF file; None without any."""
    files = weight_files(str(model), gguf_file)
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE))
            file.seek(max(0, size - SAMPLE))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest() if files else None


NO_SELECTION = ["--selection.rule", "null", "--selection.stop", "false", "--export.best", "false"]
REMOVE = "remove this and all later stages"
RENAME_OR_REMOVE = f"give the sequence another --name, or {REMOVE}"


@dataclass(frozen=True)
class Stage:
    """Stage of a sequence.

    Attributes:
        sequence: the file of requests.
        folder: folder of the sequence.
        number: number of the stage and of its request, from 1.
        config: resolved configuration of `fit` that all stages share.
        forget_fingerprint: fingerprint of the stage's forget rows.
    """

    sequence: RequestsFile
    folder: Path
    number: int
    config: Mapping[str, Any]
    forget_fingerprint: str = ""

    @property
    def requests(self) -> list[str]:
        """All requests up to this stage's."""
        return self.sequence.requests[: self.number]

    @property
    def forget(self) -> str | list[str]:
        """Forget set of the stage."""
        return self.requests[-1] if self._is_chained else self.requests

    @property
    def run(self) -> RunFolder:
        """Run folder of the stage."""
        return RunFolder(self.folder / f"stage-{self.number}")

    @property
    def finished(self) -> bool:
        """True if the stage's run is finished."""
        return self.run.read_manifest().get("status") == "finished"

    @property
    def chosen_epochs(self) -> int:
        """Epochs behind the weights that this finished stage exported; InputError if they were not evaluated."""
        if self.run.final_step is None:
            raise InputError(
                f"{self.run.path} has {self.run.lack}, so that its number of epochs is not known: set epochs_of_first to "
                "false, or selection.rule to one that chooses among evaluations"
            )
        epoch: float = self.run.final_metrics["epoch"]
        return max(1, round(epoch))

    @property
    def retain_only(self) -> RunFolder:
        """Run folder of the evaluation of the retain-only model on this stage's data."""
        return RunFolder(self.folder / f"stage-{self.number}-retain_only")

    @property
    def retain_only_model(self) -> Path | None:
        """The retain-only model of this stage."""
        models = self.sequence.retain_only
        if models is None:
            return None
        model = Path(expanded(models if isinstance(models, str) else models[self.number - 1]))
        return RunFolder(model).hf if RunFolder(model).hf.is_dir() else model

    @property
    def start(self) -> Path:
        """The model that this stage starts from: a folder, a GGUF file or a hub id."""
        if self._before is not None:
            return self._before.run.hf
        return Path(self._policy["path"])

    @property
    def _policy(self) -> Mapping[str, Any]:
        policy: Mapping[str, Any] = self.config["model"]["init_args"]["policy"]["init_args"]
        return policy

    @property
    def _start_gguf(self) -> str | None:
        return self._policy.get("gguf_file") if self._before is None else None

    @property
    def _is_chained(self) -> bool:
        return self.sequence.mode == "sustainability"

    @property
    def _before(self) -> "Stage | None":
        return self._at(self.number - 1) if self._is_chained and self.number > 1 else None

    @property
    def _gives_epochs(self) -> "Stage | None":
        return self._at(1) if self.sequence.epochs_of_first and self.number > 1 else None

    def _at(self, number: int) -> "Stage":
        return replace(self, number=number, forget_fingerprint="")

    def check(self) -> None:
        """Check that the folder is empty or holds this stage, and that the models it needs exist.

        Raises:
            InputError: the folder holds another run, one of other requests or rows, or one that started from a model
                that has changed since; or a model is missing.
        """
        manifest = self.run.read_manifest()
        if manifest:
            self._check_record(manifest)
        elif self.run.manifest.exists():
            raise InputError(f"cannot read {self.run.manifest}: restore it, or {REMOVE}")
        if self.finished:
            if self._gives_epochs is not None and not self._gives_epochs.finished:
                raise InputError(
                    f"{self._gives_epochs.run.path} is not finished, and later stages, which take their number of "
                    "epochs from it, are: restore it, or remove them"
                )
            return
        if self.retain_only_model is not None:
            # Imports transformers, which takes seconds.
            from dipo_pl.models.pretrained import Pretrained

            try:
                Pretrained(str(self.retain_only_model)).refuse_unusable_folder()
            except InputError as error:
                raise InputError(f"retain_only: {error}") from None
        if self._before is not None and self._before.finished:
            hf = self._before.run.hf
            if not (hf / "config.json").is_file() or weights_sample(hf) is None:
                raise InputError(
                    f"{self._before.run.path} is finished, and its model, from which the next stage starts, is missing "
                    f"(no config.json or no *.safetensors in {hf}): restore it, or {REMOVE} to train them again"
                )

    def _check_record(self, manifest: Mapping[str, Any]) -> None:
        path, record = self.run.path, manifest.get("sequence")
        if record is None:
            raise InputError(
                f"{path} holds a run that is no stage of a sequence: give another --name, or remove it"
            )
        for key, value in {"mode": self.sequence.mode, "requests": self.requests}.items():
            if record.get(key) != value:
                raise InputError(
                    f"{key} must be {_short(record.get(key))}, with which {path} was made (got {_short(value)}): "
                    f"{RENAME_OR_REMOVE}"
                )
        if manifest.get("data", {}).get("forget", {}).get("fingerprint") != self.forget_fingerprint:
            raise InputError(
                f"the rows of {_short(self.forget)} have changed since {path} forgot them: {RENAME_OR_REMOVE}"
            )
        for key, use in {
            "start": f"started from {self.start}",
            "retain_only": f"was compared with {self.retain_only_model}",
        }.items():
            # None: the model is gone, and a finished stage does not need it.
            known = self._record["init_args"][key]
            if known is not None and record.get(key) != known:
                raise InputError(f"{path} {use} before that model changed, or with another model: {REMOVE}")

    @property
    def _record(self) -> dict[str, Any]:
        """Configuration of the callback that records the stage in the manifest."""
        model = self.retain_only_model
        record = {
            "name": self.folder.name,
            "mode": self.sequence.mode,
            "requests": self.requests,
            "start": weights_sample(self.start, self._start_gguf),
            "retain_only": None if model is None else weights_sample(model),
        }
        return {"class_path": "dipo_pl.commands.sequence.stage_record.StageRecord", "init_args": record}

    def fit_words(self, arguments: Sequence[str]) -> list[str]:
        """Return the command that trains this stage, with the options of `fit` that all stages share."""
        callbacks = self.config["trainer"].get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        settings = self._settings(self.run, self.start, self._start_gguf) | {
            "trainer.callbacks": [*callbacks, self._record]
        }
        reference = self.config["model"]["init_args"].get("reference") or {}
        if (store := (reference.get("init_args") or {}).get("path")) is not None:
            settings["model.reference.path"] = str(Path(store) / self.run.path.name)
        if self.sequence.retain_only is not None:
            settings["forget_quality.retain_result"] = str(self.retain_only.path)
        words = ["fit", *arguments, *as_options(settings)]
        if self._gives_epochs is not None:
            words += ["--trainer.max_epochs", str(self._gives_epochs.chosen_epochs), *NO_SELECTION]
        return words

    def evaluation_words(self, arguments: Sequence[str]) -> list[str] | None:
        """Return the command that evaluates the retain-only model on this stage's data; None if there is no model."""
        model = self.retain_only_model
        if model is None:
            return None
        words = ["validate", *arguments, *as_options(self._settings(self.retain_only, model))]
        return [*words, "--forget_quality.retain_result", "null", *NO_SELECTION]

    def _settings(self, run: RunFolder, model: Path, gguf_file: str | None = None) -> dict[str, Any]:
        data, policy = self.config["data"], self.config["model"]["init_args"]["policy"]
        place = {"path": str(model)} | ({"gguf_file": gguf_file} if "gguf_file" in self._policy else {})
        own = {"forget": self.forget, "requests": self.requests}
        own |= {"requests_to_come": self.sequence.requests[self.number :]}
        return {
            # The data are given as a whole: as options of their own, some names would be parsed as other YAML values.
            "data": data | {"init_args": data["init_args"] | own},
            "model.policy": policy | {"init_args": policy["init_args"] | place},
            "name": run.path.name,
            "output_dir": str(self.folder),
        }


def _short(names: Any) -> str:
    text = ", ".join(map(str, names)) if isinstance(names, list) else str(names)
    return text if len(text) <= 80 else f"{text[:80]}..."
