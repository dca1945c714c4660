"""Alternate answers to the forget rows' questions, for losses that train another answer in the true one's place."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from dipo_pl.data_modules.file_content import read_lines
from dipo_pl.data_modules.record_files import read_records
from dipo_pl.data_modules.row_files import texts_at
from dipo_pl.data_modules.training_batches import permutation
from dipo_pl.errors import InputError, check_count
from dipo_pl.rows import Row


class Alternates(ABC):
    """Base class of sources of alternate answers: K for each forget row, of which epoch e trains number e mod K."""

    @abstractmethod
    def answers(self, rows: Sequence[Row], seed: int) -> list[tuple[str, ...]]:
        """Return the alternate answers of each forget row, the same number for every row.

        Raises:
            InputError: a row has none, or a file is missing or malformed.
        """


class Refusals(Alternates):
    """Refusals ("I don't know" in many wordings), drawn for each row by the seed.

    Source: TOFU, arXiv:2401.06121, "Preference Optimization", whose 100 refusals are in `idontknow.jsonl`.

    Args:
        path: text file of one refusal per line, plain or as a JSON string; null uses the 50 that are shipped.
        per_row: refusals per row; none is repeated while there are others.
    """

    def __init__(self, path: str | None = None, per_row: int = 10) -> None:
        check_count("data.alternates.per_row", per_row)
        self.path = path
        self.per_row = per_row

    def answers(self, rows: Sequence[Row], seed: int) -> list[tuple[str, ...]]:
        """Return `per_row` refusals for each row."""
        path = Path(__file__).with_name("refusals.txt") if self.path is None else self.path
        lines = read_lines(path, "a text file")
        refusals = list(dict.fromkeys(_refusal(line, where) for where, line in lines))
        rounds = range(-(-self.per_row // len(refusals)))
        drawn = (
            [
                each
                for number in rounds
                for each in permutation(seed, f"refusals/{row}", number, len(refusals))
            ]
            for row in range(len(rows))
        )
        return [tuple(refusals[index] for index in each[: self.per_row]) for each in drawn]


def _refusal(line: str, where: str) -> str:
    try:
        text = json.loads(line)
    except ValueError:
        text = line.strip()
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: a refusal must be a plain text or a JSON string (got {line[:60]!r})")
    return text


class RowAlternates(Alternates):
    """Alternate answers of each row's own: other plausible answers to its question.

    Source: AltPO, arXiv:2409.13474, which samples 5 per question from the model itself.

    Args:
        path: JSON-lines file of {question, alternate_answer}, with one answer or a list; open-unlearning's name
            `alternate` is also accepted, and lines with the same question add up. Null uses the column alternate_answer
            of the forget rows.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def answers(self, rows: Sequence[Row], seed: int) -> list[tuple[str, ...]]:
        """Return the alternate answers that the file or the row itself has."""
        if self.path is None:
            found = [row.alternate_answers for row in rows]
        else:
            known = _by_question(self.path)
            found = [known.get(row.question, ()) for row in rows]
        for row, answers in zip(rows, found, strict=True):
            if not answers:
                raise InputError(
                    f"the forget row {row.question[:60]!r} has no alternate_answer in {self.path or 'the row itself'}: add "
                    "one, or set data.alternates to Refusals"
                )
        return found


def _by_question(path: str) -> dict[str, tuple[str, ...]]:
    known: dict[str, tuple[str, ...]] = {}
    for where, record in read_records(path):
        question = record.get("question")
        answers = texts_at(record, "alternate_answer", where) or texts_at(record, "alternate", where)
        if not isinstance(question, str) or not answers:
            raise InputError(
                f"{where}: needs the columns 'question' and 'alternate_answer' (got {', '.join(record) or 'none'})"
            )
        known[question] = known.get(question, ()) + answers
    return known


def companion_answers(
    kind: str, rows: Sequence[Row], alternates: Alternates | None, seed: int
) -> list[tuple[str, ...]]:
    """Return other answers to each forget row's question, the same number for every row.

    Of the kind `alternate` these are what `alternates` gives, or else the rows' own; of the kind `mismatched` the answer
    of the next row, the first one's for the last.


    Raises:
        InputError: a row has no question, no such answer, or more of them than another.
    """
    for row in rows:
        if not row.messages:
            raise InputError(
                f"model.forget_loss needs {kind} answers to the forget rows' questions, and the row that "
                f"begins {row.answer[:60]!r} has no question: give rows of {{question, answer}}, or "
                "choose another loss"
            )
    if kind == "alternate":
        return _alternate(rows, alternates, seed)
    if kind == "mismatched":
        return _mismatched(rows)
    raise InputError(
        f"model.forget_loss needs sequences of the kind {kind!r}; batches can hold forget, alternate, mismatched, retain"
    )


def _alternate(rows: Sequence[Row], alternates: Alternates | None, seed: int) -> list[tuple[str, ...]]:
    if alternates is None and not any(row.alternate_answers for row in rows):
        raise InputError(
            "model.forget_loss needs another answer to each forget row's question, and no row has an "
            "alternate_answer: set data.alternates to Refusals, or to RowAlternates with a path"
        )
    answers = (alternates or RowAlternates()).answers(rows, seed)
    counts = {len(each) for each in answers}
    if len(counts) > 1:
        raise InputError(
            f"forget rows have {' or '.join(map(str, sorted(counts)))} alternate answers: give every row the "
            "same number"
        )
    return answers


def _mismatched(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    if len(rows) < 2:
        raise InputError(
            f"model.forget_loss needs each forget row's question with another row's answer, and there is "
            f"{len(rows)} forget row: give at least 2"
        )
    return [(row.answer,) for row in (*rows[1:], rows[0])]
