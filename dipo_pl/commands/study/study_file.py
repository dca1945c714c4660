"""File that describes a study: its rows, seeds, models to start from, learning rates and probes."""

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from dipo_pl.cli.console import near
from dipo_pl.errors import InputError, check_count, check_number
from dipo_pl.storage.text import read_yaml

PROBES = ("relearn", "quantize", "audit")
RATE = "model.optimizer.lr"
# A study sets these for each of its runs.
OWN = ("name", "output_dir", "seed_everything", "config", "ckpt_path", "require")


@dataclass(frozen=True)
class Recipe:
    """Configs and options of a run.

    Attributes:
        configs: as `dipo-pl fit --config` takes them; those of a row come after the study's.
        options: values of options of `fit` by dotted key.
    """

    configs: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def check(self, where: str) -> None:
        """Check the types of all keys; raise InputError, which names `where`, if one is wrong."""
        _expect(where, "configs", self.configs, "a list of texts", _are(str, self.configs))
        _check_options(where, "options", self.options)


@dataclass(frozen=True)
class Model(Recipe):
    """Model that rows start from or are compared with.

    Attributes:
        seed: seed of one model for all runs of the study; None makes one for each seed.
    """

    seed: int | None = None

    def check(self, where: str) -> None:
        """Check the types of all keys; see the base class."""
        super().check(where)
        valid = self.seed is None or (type(self.seed) is int and self.seed >= 0)
        _expect(where, "seed", self.seed, "a whole number, not below 0", valid)


@dataclass(frozen=True)
class Row(Recipe):
    """Row of the table: what its runs have beside the study's configs and options.

    Attributes:
        name: name of the row.
        sweep: values by dotted key, a list or a mapping of labels to values; the row stands for one of each combination,
            named `ROW LABEL LABEL`.
        tune: choose the learning rate by the study's rule; false keeps the configured one.
    """

    name: str = ""
    sweep: dict[str, Any] = field(default_factory=dict)
    tune: bool = True

    @property
    def slug(self) -> str:
        """Name of the row's folder."""
        return re.sub(r"([^\w.]|_)+", "-", self.name.lower()).strip("-.")

    def check(self, where: str) -> None:
        """Check the types of all keys; see the base class."""
        super().check(where)
        _expect(where, "tune", self.tune, "true or false", isinstance(self.tune, bool))
        _check_options(where, "sweep", self.sweep)
        for key, values in self.sweep.items():
            valid = isinstance(values, list | dict) and bool(values)
            _expect(where, f"sweep of {key}", values, "a list, or a mapping of labels to values", valid)
            if key in self.options:
                raise InputError(f"{where} gives {key} both in sweep and in options: leave one of them out")
        if not self.slug:
            raise InputError(f"{where} needs a name with a letter or a digit (got {self.name!r})")

    def swept(self) -> Iterator["Row"]:
        """Yield a row for each combination of swept values; itself if nothing is swept."""
        labeled = [
            [(key, *each) for each in (values.items() if isinstance(values, dict) else zip(values, values, strict=True))]
            for key, values in self.sweep.items()
        ]  # fmt: skip
        for combination in itertools.product(*labeled):
            name = " ".join([self.name, *(str(label) for _, label, _ in combination)])
            values = {key: value for key, _, value in combination}
            yield replace(self, name=name, options=self.options | values, sweep={})


@dataclass(frozen=True)
class Rates:
    """Choice of the learning rate, by one rule for all rows.

    Attributes:
        seeds: seeds of the runs that it rests on, none of them in the table.
        values: the learning rates.
        rule: selection rule that scores evaluations, as `selection.rule` takes it. The rate with the highest score of the
            evaluation that counts for a run, which the table would show, averaged over the seeds, is chosen; of equal ones
            the lowest.
        options: further options of these runs, such as a lower number of epochs.
    """

    seeds: list[int]
    values: list[float]
    rule: Any = "NearestToUnseen"
    options: dict[str, Any] = field(default_factory=dict)

    def check(self, where: str) -> None:
        """Check the types and values of all keys; see `Recipe.check`."""
        _check_seeds(where, self.seeds)
        _check_options(where, "options", self.options)
        if RATE in self.options:
            raise InputError(
                f"{where}.options gives {RATE}, which takes each of {where}.values: leave it out"
            )
        valid = isinstance(self.values, list) and bool(self.values)
        _expect(where, "values", self.values, "a list of at least one learning rate", valid)
        for each in self.rates:
            check_number(f"{where}.values", each, above=0)
        if len({*self.rates}) < len(self.rates):
            raise InputError(f"{where}.values gives a learning rate twice (got {self.values!r})")
        _expect(where, "rule", self.rule, "a selection rule", isinstance(self.rule, str | dict))

    @property
    def rates(self) -> list[float]:
        """The learning rates; YAML reads 5e-5 as a text."""
        try:
            return [float(each) for each in self.values]
        except (TypeError, ValueError):
            raise InputError(f"learning_rate.values must be numbers (got {self.values!r})") from None


@dataclass(frozen=True)
class StudyFile:
    """Content of a study file.

    Attributes:
        configs: configs of every unlearning run, before those of its row.
        rows: the rows, with each sweep as rows of its own.
        seeds: seeds of the table.
        options: options of every run, those of the models below among them.
        target: the model that every row of the same seed starts from; None leaves `model.policy` as configured.
        retain_only: the model that never saw the forget rows, which every row of the same seed is compared with; None
            leaves `forget_quality.retain_result` as configured.
        learning_rate: how learning rates are chosen; None leaves them as configured.
        after: probes of every row's run by name, `relearn`, `quantize` or `audit`, with their options; the first two also of
            the retain-only model, which an audit attacks beside each run.
        threads: threads of a run (OMP_NUM_THREADS).
        keep_weights: keep exported models and checkpoints of runs that are finished and no longer needed.
    """

    configs: list[str]
    rows: tuple[Row, ...]
    seeds: list[int]
    options: dict[str, Any] = field(default_factory=dict)
    target: Model | None = None
    retain_only: Model | None = None
    learning_rate: Rates | None = None
    after: dict[str, dict[str, Any]] = field(default_factory=dict)
    threads: int = 1
    keep_weights: bool = False

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the content of a file.

        Raises:
            InputError: the file cannot be read, or a key is missing, unknown or has a wrong value.
        """
        content = read_yaml(path, "the study in")
        _check_keys(str(path), cls, content)
        rows, parts = content["rows"], {"target": Model, "retain_only": Model, "learning_rate": Rates}
        if not isinstance(rows, dict) or not rows:
            raise InputError(
                f"{path}: rows must be a mapping of at least one name to its configs (got {rows!r})"
            )
        made: dict[str, Any] = {
            name: _part(f"{path}: {name}", parts[name], content[name])
            for name in parts.keys() & content.keys()
            if content[name] is not None
        }
        made["rows"] = tuple(
            each
            for name, row in rows.items()
            for each in _part(f"{path}: row {name!r}", Row, row or {}, name=str(name)).swept()
        )
        read = cls(**content | made)
        read.check(str(path))
        return read

    def check(self, path: str) -> None:
        """Check the types and values of all keys.

        Raises:
            InputError: a value is not one that the key can have; `path` is the file that is named.
        """
        _expect(
            path,
            "configs",
            self.configs,
            "a list of at least one text",
            bool(self.configs) and _are(str, self.configs),
        )
        _check_seeds(path, self.seeds)
        _check_options(path, "options", self.options)
        _expect(path, "keep_weights", self.keep_weights, "true or false", isinstance(self.keep_weights, bool))
        _expect(path, "threads", self.threads, "a whole number", type(self.threads) is int)
        check_count("threads", self.threads)
        _expect(
            path, "after", self.after, "a mapping of probes to their options", isinstance(self.after, dict)
        )
        for name, options in self.after.items():
            if name not in PROBES:
                raise InputError(
                    f"{path}: after has the unknown probe {name!r}: the probes are {', '.join(PROBES)}"
                )
            # A config of another probe would be no part of its fingerprint.
            _check_options(path, f"after.{name}", options, ("config",) if name == "audit" else ())
        self._check_audit(path)
        both = {*self.seeds} & {*(self.learning_rate.seeds if self.learning_rate else ())}
        if both:
            raise InputError(
                f"{path}: seed {min(both)} is both in seeds and in learning_rate.seeds: choose learning rates on seeds that "
                "are not in the table"
            )
        self._check_rows(path)

    def _check_audit(self, path: str) -> None:
        options = self.after.get("audit", {})
        config = options.get("config", "")
        _expect(path, "after.audit.config", config, "the name of one config", isinstance(config, str))
        for key, is_set in {"target": self.target, "against": self.retain_only, "references": True}.items():
            if key in options and is_set:
                raise InputError(
                    f"{path}: after.audit gives {key}, which the study sets for each run: leave it out"
                )

    def _check_rows(self, path: str) -> None:
        folders: dict[str, str] = {}
        for each in self.rows:
            if (other := folders.setdefault(each.slug, each.name)) != each.name:
                raise InputError(
                    f"{path}: rows {other!r} and {each.name!r} would share the folder rows/{each.slug}: rename one"
                )
            if self.target is not None and "model.policy.path" in each.options:
                raise InputError(
                    f"{path}: row {each.name!r} gives model.policy.path, and every row starts from the target: leave one of "
                    "them out"
                )
            if self.tunes(each) and RATE in self.options | each.options:
                raise InputError(
                    f"{path}: row {each.name!r} gives {RATE}, which learning_rate chooses: give the row tune: false, or "
                    "leave it out"
                )
        names = [each.name for each in self.rows]
        if twice := next((each for each in names if names.count(each) > 1), None):
            raise InputError(f"{path}: two rows are named {twice!r}: rename one")

    def tunes(self, row: Row) -> bool:
        """Return whether the study chooses the learning rate of a row."""
        return self.learning_rate is not None and row.tune


def _part(where: str, kind: type[Any], content: Any, **given: Any) -> Any:
    _check_keys(where, kind, content, {*given})
    made = kind(**content, **given)
    made.check(where)
    return made


def _check_keys(where: str, kind: type[Any], content: Any, given: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    keys = {each.name: each for each in fields(kind) if each.name not in given}
    if not isinstance(content, dict):
        raise InputError(
            f"{where} must be a mapping with some of the keys {', '.join(keys)} (got {content!r})"
        )
    if unknown := sorted(map(str, content.keys() - keys.keys())):
        hint = near(unknown[0], list(keys))
        raise InputError(f"{where} has the unknown key {unknown[0]!r}{hint}: the keys are {', '.join(keys)}")
    for name, key in keys.items():
        if key.default is MISSING and key.default_factory is MISSING and name not in content:
            raise InputError(f"{where} lacks the key {name!r}")


def _check_options(where: str, name: str, options: Any, allowed: Collection[str] = ()) -> None:
    _expect(
        where,
        name,
        options,
        "a mapping of dotted keys to values",
        isinstance(options, Mapping) and _are(str, options),
    )
    for key in options:
        if key in OWN and key not in allowed:
            raise InputError(f"{where}: {name} gives {key}, which the study sets for each run: leave it out")


def _check_seeds(where: str, seeds: Any) -> None:
    valid = isinstance(seeds, list) and bool(seeds) and all(type(each) is int and each >= 0 for each in seeds)
    _expect(where, "seeds", seeds, "a list of at least one whole number, none below 0", valid)
    _expect(where, "seeds", seeds, "a list without duplicates", len({*seeds}) == len(seeds))


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list | dict) and all(isinstance(each, kind) for each in values)


def _expect(where: str, name: str, value: Any, what: str, valid: bool) -> None:
    if not valid:
        raise InputError(f"{where}: {name} must be {what} (got {value!r})")
