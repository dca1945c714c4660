"""TOFU: a data module of 200 fictitious authors with 20 questions each, the last of whom are to be forgotten."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.data_modules.record_files import Placed, content_of, load_split, named_file, read_records
from dipo_pl.data_modules.requests import listed
from dipo_pl.data_modules.row_files import rows_from
from dipo_pl.errors import InputError, check_count
from dipo_pl.evaluation_set import EvaluationSet, RowSets
from dipo_pl.paths import expanded
from dipo_pl.rows import Row

AUTHORS, ROWS_EACH = 20, 20
FORGET_ROWS = {"forget01": 40, "forget05": 200, "forget10": AUTHORS * ROWS_EACH}
# Columns of the published files that nothing here uses.
KNOWN = ("original_answer", "perturbed_question")
ENTITIES = Path(__file__).with_name("tofu_entities.json")
EVALUATION_SETS = ("forget", "retain", "real_authors", "world_facts", "holdout")


class TOFU(ForgetRetain):
    """Data module of the TOFU benchmark (Maini et al. 2024, arXiv:2401.06121).

    The forget set is the last 40, 200 or 400 of the 4,000 rows, and all rows before it are retained. Rows have no
    alternate answers: losses that need them need `alternates` (TOFU's refusals are in `idontknow.jsonl`). Evaluation
    sets: `forget`, `retain`, `real_authors`, `world_facts`, and `holdout`, authors that no model has seen, for
    membership inference; a folder without it (`holdout10.jsonl`) is measured without.

    Args:
        path: `locuslab/TOFU` on the hub, or a folder with its configurations `full`, `forget10_perturbed`,
            `retain_perturbed`, `real_authors_perturbed` and `world_facts_perturbed`, each a file of JSON lines
            (`full.jsonl`, or `full.json` as on the hub), CSV or Parquet, or a folder of Parquet files.
        forget: forget01, forget05, forget10, one of the 20 authors of forget10 (author_1 to author_20), or a list.
        forget_rows: use only the first rows of each forget set; null uses all.
        retain_rows: use only the first rows of the retain set, to train on and to measure as `retain`; null uses all.
        holdout_rows: take this many rows of the retain set after the first `retain_rows` as `holdout`: a model that was
            trained with the same `retain_rows` has not seen them; null reads `holdout10`.
        options: arguments of ForgetRetain.
    """

    def __init__(
        self,
        path: str = "locuslab/TOFU",
        forget: str | list[str] = "forget10",
        forget_rows: int | None = None,
        retain_rows: int | None = None,
        holdout_rows: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_count("data.forget_rows", forget_rows)
        check_count("data.retain_rows", retain_rows)
        check_count("data.holdout_rows", holdout_rows)
        if holdout_rows is not None and retain_rows is None:
            raise InputError(
                f"data.holdout_rows needs data.retain_rows, after which they begin (got {holdout_rows} and null)"
            )
        self.path = expanded(path)
        self.forget = forget
        self.forget_rows = forget_rows
        self.retain_rows = retain_rows
        self.holdout_rows = holdout_rows

    def read(self) -> RowSets:
        """Read the rows and the evaluation sets that are measured."""
        # With all rows of their authors, also those that `forget_rows` leaves out.
        places = [_places(name) for name in {*listed(self.forget), *self.requests}]
        full = self._split("full")
        forget = self.named_forget(self.forget)
        forgotten = {len(full) - FORGET_ROWS["forget10"] + place for each in places for place in each}
        retain = [row for place, row in enumerate(full) if place not in forgotten]
        names = list(EVALUATION_SETS if self.evaluate is None else self.evaluate)
        if set(names) - set(EVALUATION_SETS):
            # The base class refuses unknown names, and lists those that are known.
            names = list(EVALUATION_SETS)
        if (
            self.evaluate != names
            and self.holdout_rows is None
            and Path(self.path).is_dir()
            and not named_file(Path(self.path), self._holdout).exists()
        ):
            names.remove("holdout")
        known = {"forget": forget}
        if self.holdout_rows is not None and self.retain_rows is not None:
            known["holdout"] = retain[self.retain_rows : self.retain_rows + self.holdout_rows]
            if len(known["holdout"]) < self.holdout_rows:
                raise InputError(
                    f"data.holdout_rows must be at most {len(known['holdout'])}, the rows after the first "
                    f"{self.retain_rows} (got {self.holdout_rows})"
                )
        rows = {
            name: known[name] if name in known else self._split(self._configuration(name)) for name in names
        }
        kept = _first(retain, self.retain_rows, "retain_rows", "the retain set")
        if self.retain_rows is not None and "retain" in rows:
            rows["retain"] = self._trained(rows["retain"], kept)
        options = ("real_authors", "world_facts")
        evaluation = [EvaluationSet(name, each, options=name in options) for name, each in rows.items()]
        return RowSets(forget, kept, evaluation)

    def read_forget(self, name: str) -> Sequence[Row]:
        """Read a forget set; all are rows of forget10, so that one file of perturbed answers serves them all."""
        places = _places(name)
        rows = with_entities(self._split("forget10_perturbed"))
        return _first(rows[places.start : places.stop], self.forget_rows, "forget_rows", name)

    def _trained(self, measured: Sequence[Row], kept: Sequence[Row]) -> list[Row]:
        """Return the rows that are among those kept: utility is of what a model trains on."""
        known = {each.conversation for each in kept}
        found = [each for each in measured if each.conversation in known]
        if not found:
            raise InputError(
                f"no row of {self.path}'s retain_perturbed is among the first {len(kept)} rows of the retain set: raise "
                "data.retain_rows, or leave retain out of data.evaluate"
            )
        return found

    @property
    def _holdout(self) -> str:
        name = self.forget if isinstance(self.forget, str) else ""
        return name.replace("forget", "holdout") if name in FORGET_ROWS else "holdout10"

    def _split(self, name: str) -> Sequence[Row]:
        source = f"{self.path} {name}"
        placed: Iterable[Placed]
        if Path(self.path).is_dir():
            source, placed = str(self._file(name)), read_records(self._file(name))
        else:
            placed = load_split(self.path, name, "train", f"TOFU's {name}")
        return rows_from(placed, source, known=KNOWN)

    def _configuration(self, name: str) -> str:
        return self._holdout if name == "holdout" else f"{name}_perturbed"

    def _file(self, name: str) -> Path:
        file = named_file(Path(self.path), name)
        if not file.exists():
            raise InputError(
                f"no file {file}: data.path must be a folder with TOFU's {name} under this name, as .jsonl, .json, .csv or "
                f".parquet (it has {content_of(Path(self.path))})"
            )
        return file


def with_entities(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of forget10, 367 of them with the entity of their answer, which attacks look for.

    Source: arXiv:2605.24614 (Apache-2.0). A row that has an entity of its own, or another answer, is left as it is.
    """
    known = json.loads(ENTITIES.read_text(encoding="utf-8"))["entities"]
    found = []
    for place, row in enumerate(rows):
        entity = known.get(str(place))
        fits = row.entity is None and entity is not None and entity in row.answer
        found.append(replace(row, entity=entity) if fits else row)
    return found


def _first(rows: Sequence[Row], count: int | None, option: str, name: str) -> Sequence[Row]:
    """Return the first rows of a set, or all; an InputError if it has fewer."""
    if count is not None and count > len(rows):
        raise InputError(f"data.{option} must be at most {len(rows)}, the rows of {name} (got {count})")
    return rows[:count]


def _places(name: str) -> range:
    """Return the places of a forget set among the rows of forget10; an InputError if TOFU has none of this name."""
    end = FORGET_ROWS["forget10"]
    if name in FORGET_ROWS:
        return range(end - FORGET_ROWS[name], end)
    authors = {f"author_{number}": number for number in range(1, AUTHORS + 1)}
    if name not in authors:
        raise InputError(
            f"data.forget and data.requests must name forget sets of TOFU: {', '.join(FORGET_ROWS)}, author_1 to "
            f"author_{AUTHORS} (got {name!r})"
        )
    return range((authors[name] - 1) * ROWS_EACH, authors[name] * ROWS_EACH)
