"""The stages of a sequence: what each starts from, what it forgets, and whether its folder is still what it says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipo_pl.cli.command_parser import as_options
from dipo_pl.commands.sequence.requests_file import RequestsFile
from dipo_pl.commands.sequence.weights_sample import weights_sample
from dipo_pl.errors import InputError
from dipo_pl.storage.run_folder import RunFolder

NO_SELECTION = ["--selection.rule", "null", "--selection.stop", "false", "--export.best", "false"]


@dataclass(frozen=True)
class Stage:
    """The run for the request at `number`, from 1 on.

    Attributes:
        config: what `fit` is given for every stage, resolved.
        forget_fingerprint: of the rows that it is to forget.
    """

    sequence: RequestsFile
    folder: Path
    number: int
    config: Mapping[str, Any]
    forget_fingerprint: str = ""

    @property
    def requests(self) -> list[str]:
        return self.sequence.requests[: self.number]

    @property
    def forget(self) -> str | list[str]:
        return self.requests[-1] if self.follows else self.requests

    @property
    def follows(self) -> bool:
        """Whether stages start from one another."""
        return self.sequence.mode == "sustainability"

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder / f"stage-{self.number}")

    @property
    def retain_only(self) -> RunFolder:
        """Where the model that saw no request is measured with this stage's data."""
        return RunFolder(self.folder / f"stage-{self.number}-retain_only")

    @property
    def before(self) -> "Stage | None":
        """The stage that this one starts from."""
        if not self.follows or self.number == 1:
            return None
        return self._at(self.number - 1)

    def _at(self, number: int) -> "Stage":
        return Stage(self.sequence, self.folder, number, self.config)

    @property
    def start(self) -> Path:
        """The model that this stage starts from; a hub's is no folder here."""
        target = Path(self.config["model"]["init_args"]["policy"]["init_args"]["path"])
        return target if self.before is None else self.before.run.hf

    @property
    def retain_only_model(self) -> Path | None:
        models = self.sequence.retain_only
        if models is None:
            return None
        model = Path(models if isinstance(models, str) else models[self.number - 1])
        return RunFolder(model).hf if RunFolder(model).hf.is_dir() else model

    @property
    def finished(self) -> bool:
        return self.run.read_manifest().get("status") == "finished"

    def check(self) -> None:
        """That what is in the folder, if anything, is this stage, and that the model it starts from is there.

        Raises:
            InputError: it is another run, of other requests or rows, or went on from a model that was made anew since.
        """
        manifest = self.run.read_manifest()
        if manifest:
            self._check_record(manifest)
        elif self.run.manifest.exists():
            raise InputError(
                f"cannot read {self.run.manifest}: put it back, or remove this and all later stages"
            )
        if self.retain_only_model is not None and not self.finished:
            from dipo_pl.models.pretrained import Pretrained

            try:
                Pretrained(str(self.retain_only_model)).refuse_unusable_folder()
            except InputError as error:
                raise InputError(f"retain_only: {error}") from None
        if self.finished and self.sequence.epochs_of_first and self.number > 1:
            self._at(1).refuse_unfinished()
        if not self.finished and self.before is not None and self.before.finished:
            self.before.refuse_without_model()

    def _check_record(self, manifest: Mapping[str, Any]) -> None:
        record = manifest.get("sequence")
        if record is None:
            raise InputError(
                f"{self.run.path} holds a run that is no stage of a sequence: give another --name, or remove it"
            )
        now = {"mode": self.sequence.mode, "requests": self.requests}
        for key, value in now.items():
            if record.get(key) != value:
                raise InputError(
                    f"{self.run.path} was made with the {key} {_short(record.get(key))}, and now it would be "
                    f"{_short(value)}: give the sequence another --name, or remove this and all later stages"
                )
        if manifest.get("data", {}).get("forget", {}).get("fingerprint") != self.forget_fingerprint:
            raise InputError(
                f"the rows of {_short(self.forget)} are not those that {self.run.path} forgot: give the sequence another "
                "--name, or remove this and all later stages"
            )
        known = self._record["init_args"]
        for key, what in {
            "start": f"started from {self.start}",
            "retain_only": f"was measured against {self.retain_only_model}",
        }.items():
            # A finished stage needs these models no more.
            if known[key] is not None and record.get(key) != known[key]:
                raise InputError(
                    f"{self.run.path} {what} as it was before it was made anew, or from another model: remove this and all "
                    "later stages"
                )

    def refuse_without_model(self) -> None:
        """
        Raises:
            InputError: this stage is finished, and its model is gone.
        """
        hf = self.run.hf
        if not (hf / "config.json").is_file() or weights_sample(hf) is None:
            raise InputError(
                f"{self.run.path} is finished and its model is gone ({hf} has no config.json or no *.safetensors), from "
                "which the next stage starts: put it back, or remove this and all later stages to make them again"
            )

    def refuse_unfinished(self) -> None:
        """
        Raises:
            InputError: this stage, whose epochs later ones take, is not finished.
        """
        if not self.finished:
            raise InputError(
                f"{self.run.path} is not finished, and later stages, which train as long as it did, are: put it back, or "
                "remove them"
            )

    @property
    def _record(self) -> dict[str, Any]:
        """Of the callback that notes in the manifest what this stage is."""
        model = self.retain_only_model
        record = {
            "name": self.folder.name,
            "mode": self.sequence.mode,
            "requests": self.requests,
            "start": weights_sample(self.start),
            "retain_only": None if model is None else weights_sample(model),
        }
        return {"class_path": "dipo_pl.commands.sequence.stage_record.StageRecord", "init_args": record}

    def words(self, arguments: Sequence[str]) -> list[str]:
        """Of `dipo-pl`, for this stage's run.

        Args:
            arguments: of `fit`, that all stages share.
        """
        callbacks = self.config["trainer"].get("callbacks") or []
        settings: dict[str, Any] = {
            "data": self._data,
            "model.policy": self._policy(self.start),
            "trainer.callbacks": [
                *(callbacks if isinstance(callbacks, list) else [callbacks]),
                self._record,
            ],
            "name": self.run.path.name,
            "output_dir": str(self.folder),
        }
        reference = self.config["model"]["init_args"].get("reference") or {}
        store = (reference.get("init_args") or {}).get("path")
        if store is not None:
            settings["model.reference.path"] = str(Path(store) / self.run.path.name)
        if self.sequence.retain_only is not None:
            settings["forget_quality.retain_result"] = str(self.retain_only.path)
        words = ["fit", *arguments, *as_options(settings)]
        if self.sequence.epochs_of_first and self.number > 1:
            words += ["--trainer.max_epochs", str(self._at(1).chosen_epochs), *NO_SELECTION]
        return words

    def measuring_words(self, arguments: Sequence[str]) -> list[str] | None:
        """Of `dipo-pl`, for measuring the model that saw no request; None where none is given."""
        model = self.retain_only_model
        if model is None:
            return None
        settings = {
            "data": self._data,
            "model.policy": self._policy(model),
            "name": self.retain_only.path.name,
            "output_dir": str(self.folder),
        }
        words = ["validate", *arguments, *as_options(settings)]
        return [*words, "--forget_quality.retain_result", "null", *NO_SELECTION]

    @property
    def _data(self) -> dict[str, Any]:
        own = {
            "forget": self.forget,
            "requests": self.requests,
            "requests_to_come": self.sequence.requests[self.number :],
        }
        data = self.config["data"]
        # Whole, since as words of their own some names would be read as something else.
        return {"class_path": data["class_path"], "init_args": data["init_args"] | own}

    def _policy(self, path: Path) -> dict[str, Any]:
        policy = self.config["model"]["init_args"]["policy"]
        return {"class_path": policy["class_path"], "init_args": policy["init_args"] | {"path": str(path)}}

    @property
    def chosen_epochs(self) -> int:
        """Epochs behind the weights that this finished stage exported."""
        epoch: float = self.run.final_metrics["epoch"]
        return max(1, round(epoch))


def _short(names: Any) -> str:
    text = ", ".join(map(str, names)) if isinstance(names, list) else str(names)
    return text if len(text) <= 80 else f"{text[:80]}..."
