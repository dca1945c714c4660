"""The runs of a study: what each is made of, in which folder, and which others it needs."""

import hashlib
import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from dipo_pl.cli.command_parser import as_options
from dipo_pl.commands.audit.command import CONFIG as AUDIT_CONFIG
from dipo_pl.commands.probes.quantize import KINDS
from dipo_pl.commands.study.study_file import PROBES, RATE, Model, Recipe, Row, StudyFile
from dipo_pl.configs import resolve
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.text import read_yaml

# Folder of what audits have found of the models that they share.
REFERENCES = "references"


class Kind(StrEnum):
    """Role of a run in a study, and the name of its folder there."""

    TARGET = "target"
    RETAIN_ONLY = "retain_only"
    TUNING = "tuning"
    ROW = "rows"
    RELEARN = "relearn"
    QUANTIZE = "quantize"
    AUDIT = "audit"

    @property
    def is_probe(self) -> bool:
        """True for an attack on another run's model."""
        return self in (Kind.RELEARN, Kind.QUANTIZE, Kind.AUDIT)


@dataclass(frozen=True, eq=False)
class Job:
    """Run of a study: one `dipo-pl` command.

    Attributes:
        key: name in results.json; of a run that is no probe also its folder below the study's.
        kind: its role.
        seed: its seed.
        recipe: configs and options; those of a probe are options of its own command.
        contents: what is in the configs.
        row: name of the table's row; None for the models that rows start from and are compared with.
        rate: learning rate of a tuning run.
        rule: selection rule that scores a tuning run.
        start: the run whose exported model it starts from, or which it probes.
        retain_only: the run that it is compared with.
        tuned_by: the runs that choose its learning rate.
    """

    key: str
    kind: Kind
    seed: int
    recipe: Recipe
    contents: tuple[Any, ...] = ()
    row: str | None = None
    rate: float | None = None
    rule: Any = None
    start: "Job | None" = None
    retain_only: "Job | None" = None
    tuned_by: tuple["Job", ...] = ()

    @property
    def title(self) -> str:
        """Name for people."""
        of = self.row or {Kind.TARGET: "target", Kind.RETAIN_ONLY: "retain-only"}.get(self.kind, "")
        if self.kind.is_probe and self.start is not None:
            return f"{self.start.title}, {self.kind}"
        return f"{of or self.kind}{'' if self.rate is None else f' at {self.rate:g}'}, seed {self.seed}"

    @property
    def beside(self) -> dict[str, "Job"]:
        """The runs whose models an audit attacks beside the audited one, by the option that names them."""
        if self.kind is not Kind.AUDIT or self.start is None:
            return {}
        models = {"target": self.start.start, "against": self.start.retain_only}
        return {option: each for option, each in models.items() if each is not None}

    @property
    def loads(self) -> list["Job"]:
        """The runs whose exported models it loads."""
        return [*([self.start] if self.start is not None else []), *self.beside.values()]

    @property
    def needs(self) -> list["Job"]:
        """The runs whose folders it reads."""
        return [*self.loads, *([self.retain_only] if self.retain_only is not None else [])]

    def folders(self, study: Path) -> list[RunFolder]:
        """Return its run folders; a quantization attack has one for each rounding."""
        if not self.kind.is_probe:
            return [RunFolder(study / self.key)]
        assert self.start is not None
        suffixes = [self.kind.value]
        if self.kind is Kind.QUANTIZE:
            bits = self.recipe.options.get("bits")
            suffixes = [KINDS.get(str(bits), "")] if bits else [*KINDS.values()]
        return [RunFolder(study / f"{self.start.key}-{each}") for each in suffixes]

    def words(self, study: Path, rate: float | None) -> list[str]:
        """Return the command, without `dipo-pl`, for the study's folder and the chosen learning rate."""
        options = as_options({key: _text(value) for key, value in self.recipe.options.items()})
        if self.kind.is_probe:
            assert self.start is not None
            beside = as_options({option: str(study / each.key) for option, each in self.beside.items()})
            if self.kind is Kind.AUDIT:
                beside += as_options({"references": str(study / REFERENCES)})
            return [self.kind.value, str(study / self.start.key), *beside, *options]
        own: dict[str, Any] = {}
        if self.start is not None:
            own |= {"model.policy": "Pretrained", "model.policy.path": str(study / self.start.key / "hf")}
        if self.retain_only is not None:
            own["forget_quality.retain_result"] = str(study / self.retain_only.key)
        if rate is not None:
            own[RATE] = str(rate)
        folder = study / self.key
        own |= {"seed_everything": self.seed, "name": folder.name, "output_dir": str(folder.parent)}
        configs = [word for each in self.recipe.configs for word in ("--config", each)]
        return ["fit", *configs, *options, *as_options(own)]

    def fingerprint(self, rate: float | None) -> str:
        """Return the SHA-256 of what the run is made of: content of configs, options, seed, and the same of what it needs.

        Where data lie is not part of it, so that it is the same on another machine: of `data.path`, only the last name
        counts.
        """
        options = {key: _located(key, value) for key, value in self.recipe.options.items()}
        of_needs = [each.fingerprint(None) for each in self.needs]
        content = [self.kind, self.contents, options, self.seed, rate, self.rule, of_needs]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """All runs of a study.

    Attributes:
        file: the study.
        folder: folder of its runs.
        further: options of every run from the command line, which come last.
        known: contents of configs by name, as they were when they were first read.
        models: the runs that other runs start from or are compared with, by key; several seeds may share one.

    Raises:
        InputError: a config does not exist or cannot be read.
    """

    file: StudyFile
    folder: Path
    further: dict[str, Any]
    known: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Job] = field(default_factory=dict)

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """The runs in the order in which they are started: all rows of a seed before the next seed."""
        tuned = [each for each in self.file.rows if self.file.tunes(each)]
        made: list[Job] = []
        by_row: dict[str, list[Job]] = {each.name: [] for each in tuned}
        if self.file.learning_rate is not None and tuned:
            for seed in self.file.learning_rate.seeds:
                models = self._models(seed)
                made += [each for each in models if each is not None]
                for row in tuned:
                    by_row[row.name] += [
                        self._tuning(row, seed, rate, *models) for rate in self.file.learning_rate.rates
                    ]
                    made += by_row[row.name][-len(self.file.learning_rate.values) :]
        for seed in self.file.seeds:
            target, retain_only = self._models(seed)
            made += [each for each in (target, retain_only) if each is not None]
            made += [] if retain_only is None else self._probes(retain_only)
            for row in self.file.rows:
                key, recipe = f"{Kind.ROW}/{row.slug}/seed-{seed}", self._recipe(row)
                tuned_by = tuple(by_row.get(row.name, ()))
                job = Job(
                    key, Kind.ROW, seed, recipe, self._contents(recipe), row.name, start=target, retain_only=retain_only,
                    tuned_by=tuned_by,
                )  # fmt: skip
                made += [job, *self._probes(job)]
        return tuple({each.key: each for each in made}.values())

    def jobs_of(self, rows: Iterable[str]) -> list[Job]:
        """Return the runs of some rows with all runs that they need, and the attacks on these, in order."""
        names = {*rows}
        found = {each for each in self.jobs if each.row in names}
        more = found
        while more:
            more = {need for each in more for need in (*each.needs, *each.tuned_by)} - found
            found |= more
        return [each for each in self.jobs if each in found or (each.kind.is_probe and each.start in found)]

    def _models(self, seed: int) -> tuple[Job | None, Job | None]:
        return self._model(Kind.TARGET, self.file.target, seed), self._model(
            Kind.RETAIN_ONLY, self.file.retain_only, seed
        )

    def _model(self, kind: Kind, model: Model | None, seed: int) -> Job | None:
        if model is None:
            return None
        own = seed if model.seed is None else model.seed
        key = f"{kind}/seed-{own}"
        if key not in self.models:
            given = Recipe(model.configs, self.file.options | model.options | self.further)
            self.models[key] = Job(key, kind, own, given, self._contents(given))
        return self.models[key]

    def _recipe(self, row: Row, options: dict[str, Any] | None = None) -> Recipe:
        given = self.file.options | row.options | (options or {}) | self.further
        return Recipe([*self.file.configs, *row.configs], given)

    def _contents(self, recipe: Recipe) -> tuple[Any, ...]:
        return tuple(self._read(each) for each in recipe.configs)

    def _read(self, config: str) -> Any:
        if config not in self.known:
            self.known[config] = read_yaml(resolve(config), "the config")
        return self.known[config]

    def _tuning(self, row: Row, seed: int, rate: float, target: Job | None, retain_only: Job | None) -> Job:
        assert self.file.learning_rate is not None
        recipe = self._recipe(row, self.file.learning_rate.options)
        key = f"{Kind.TUNING}/{row.slug}/{rate}/seed-{seed}"
        rule = self.file.learning_rate.rule
        return Job(
            key, Kind.TUNING, seed, recipe, self._contents(recipe), row.name, rate, rule, target, retain_only
        )

    def _probes(self, job: Job) -> list[Job]:
        made = []
        for name, options in self.file.after.items():
            kind, recipe = Kind(name), Recipe([], options)
            contents: tuple[Any, ...] = ()
            if kind is Kind.AUDIT:
                if job.kind is Kind.RETAIN_ONLY:
                    # Every audit attacks this model beside its own.
                    continue
                contents = (self._read(str(options.get("config") or AUDIT_CONFIG)),)
            made.append(_probe(job, kind, recipe, contents))
        return made


def attacks_on(job: Job) -> list[Job]:
    """Return every attack that a study can have on a run's model, for their keys and folders."""
    if job.kind.is_probe:
        return []
    return [_probe(job, Kind(name), Recipe()) for name in PROBES]


def _probe(job: Job, kind: Kind, recipe: Recipe, contents: tuple[Any, ...] = ()) -> Job:
    return Job(f"{job.key}-{kind}", kind, job.seed, recipe, contents, row=job.row, start=job)


def command_text(words: list[str]) -> str:
    """Return a command as a shell takes it."""
    return shlex.join(["dipo-pl", *words])


def _text(value: Any) -> Any:
    # as_options leaves out what is None.
    return "null" if value is None else value


def _located(key: str, value: Any) -> Any:
    return Path(value).name if key == "data.path" and isinstance(value, str) else value
