"""TOFU: 200 fictitious authors of 20 questions each; the last ones are to be forgotten."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dipo_pl.data_modules.forget_retain import ForgetRetain, RowSets
from dipo_pl.data_modules.hub import load_split
from dipo_pl.data_modules.requests import listed
from dipo_pl.data_modules.row_files import read_json_lines, row_from
from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.rows import Row

AUTHORS, ROWS_EACH = 20, 20
FORGET_ROWS = {"forget01": 40, "forget05": 200, "forget10": AUTHORS * ROWS_EACH}
EVALUATION_SETS = ("forget", "retain", "real_authors", "world_facts", "holdout")


class TOFU(ForgetRetain):
    """The TOFU benchmark (Maini et al. 2024, arXiv:2401.06121).

    The forget set is the last 40, 200 or 400 rows of the 4,000; all rows before it are retained. No row has
    alternate answers: losses that ask for them need `alternates` (its own refusals are `idontknow.jsonl`).
    Evaluation sets: `forget`, `retain`, `real_authors`, `world_facts`, and `holdout`, further authors that no model
    has seen, for membership attacks; a folder without it (`holdout10.jsonl`) is measured without.

    Args:
        path: `locuslab/TOFU` on the hub, or a folder with its configurations as JSON lines (`full.jsonl`,
            `forget10_perturbed.jsonl`, `retain_perturbed.jsonl`, `real_authors_perturbed.jsonl`,
            `world_facts_perturbed.jsonl`; a copy of the hub's own repository, with `.json`, is one too).
        forget: forget01, forget05, forget10, or one of the 20 authors of forget10, author_1 to author_20; or a list
            of these.
        forget_rows: only the first rows of a forget set; null takes all.
        retain_rows: only the first rows of the retain set; null takes all.
        options: of the base class.
    """

    def __init__(
        self,
        path: str = "locuslab/TOFU",
        forget: str | list[str] = "forget10",
        forget_rows: int | None = None,
        retain_rows: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for name, value in {"forget_rows": forget_rows, "retain_rows": retain_rows}.items():
            if value is not None and value < 1:
                raise InputError(f"data.{name} must be at least 1, or null for all, got {value}")
        self.path = path
        self.forget = forget
        self.forget_rows = forget_rows
        self.retain_rows = retain_rows

    def read(self) -> RowSets:
        places = [_places(name) for name in listed(self.forget)]
        full = self._split("full")
        forget = self.named_forget(self.forget)
        forgotten = {len(full) - FORGET_ROWS["forget10"] + place for each in places for place in each}
        retain = [row for place, row in enumerate(full) if place not in forgotten]
        # Only what is measured is read; a name that is none of ours is refused by the base class.
        unknown = set(self.evaluate or ()) - set(EVALUATION_SETS)
        everything = self.evaluate is None or bool(unknown)
        names = EVALUATION_SETS if everything else self.evaluate
        if everything and Path(self.path).is_dir() and not self._file(self._holdout).is_file():
            names = [name for name in names or () if name != "holdout"]
        evaluation = [
            EvaluationSet(
                name,
                forget if name == "forget" else self._split(self._configuration(name)),
                options=name in ("real_authors", "world_facts"),
            )
            for name in names or ()
        ]
        return RowSets(forget, retain[: self.retain_rows], evaluation)

    def read_forget(self, name: str) -> Sequence[Row]:
        places = _places(name)
        # All forget sets are rows of forget10, so one perturbed file serves them all.
        return self._split("forget10_perturbed")[places.start : places.stop][: self.forget_rows]

    @property
    def _holdout(self) -> str:
        name = self.forget if isinstance(self.forget, str) else ""
        return name.replace("forget", "holdout") if name in FORGET_ROWS else "holdout10"

    def _split(self, name: str) -> Sequence[Row]:
        if Path(self.path).is_dir():
            return read_json_lines(self._file(name))
        records = load_split(self.path, name, "train", f"TOFU's {name}")
        return [row_from(record, f"{self.path} {name}, row {i}") for i, record in enumerate(records)]

    def _configuration(self, name: str) -> str:
        return self._holdout if name == "holdout" else f"{name}_perturbed"

    def _file(self, name: str) -> Path:
        on_hub = Path(self.path) / f"{name}.json"
        return on_hub if on_hub.is_file() else on_hub.with_suffix(".jsonl")


def _places(name: str) -> range:
    """Of a forget set, among the rows of forget10."""
    end = FORGET_ROWS["forget10"]
    if name in FORGET_ROWS:
        return range(end - FORGET_ROWS[name], end)
    authors = {f"author_{number}": number for number in range(1, AUTHORS + 1)}
    if name not in authors:
        raise InputError(
            f"data.forget names {name!r}, which TOFU does not have: give {', '.join(FORGET_ROWS)} or author_1 to "
            f"author_{AUTHORS}, or a list of these"
        )
    return range((authors[name] - 1) * ROWS_EACH, authors[name] * ROWS_EACH)
