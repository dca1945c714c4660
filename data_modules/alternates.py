"""Other answers to the forget rows' questions, for losses that put something in the true answer's place."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from dipo_pl.data_modules.pairing import permutation
from dipo_pl.data_modules.row_files import json_records, read_lines, texts_at
from dipo_pl.errors import InputError
from dipo_pl.rows import Row


class Alternates(ABC):
    """Gives every forget row K other answers; epoch e trains on answer e mod K of each."""

    @abstractmethod
    def answers(self, rows: Sequence[Row], seed: int) -> list[tuple[str, ...]]:
        """The alternate answers of each forget row, as many for one as for another.

        Raises:
            InputError: a row has none, or a file is missing or malformed.
        """


class Refusals(Alternates):
    """ "I don't know" in many wordings, dealt to each row as a pure function of seed and row.

    Source: TOFU, arXiv:2401.06121, "Preference Optimization"; its own 100 are `idontknow.jsonl`.

    Args:
        path: a text file of one refusal a line, plain or as a JSON string; null takes those shipped.
        per_row: of each row; none of them twice, if there are that many.
    """

    def __init__(self, path: str | None = None, per_row: int = 10) -> None:
        if per_row < 1:
            raise InputError(f"data.alternates.per_row must be at least 1, got {per_row}")
        self.path = path
        self.per_row = per_row

    def answers(self, rows: Sequence[Row], seed: int) -> list[tuple[str, ...]]:
        path = Path(__file__).with_name("refusals.txt") if self.path is None else self.path
        refusals = list(dict.fromkeys(_text(line, where) for where, line in read_lines(path, "a text file")))
        rounds = range(-(-self.per_row // len(refusals)))
        return [
            tuple(
                refusals[index]
                for number in rounds
                for index in permutation(seed, f"refusals/{row}", number, len(refusals))
            )[: self.per_row]
            for row in range(len(rows))
        ]


def _text(line: str, where: str) -> str:
    try:
        text = json.loads(line)
    except ValueError:
        text = line.strip()
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: a refusal must be a plain text or a JSON string, got {line[:60]!r}")
    return text


class RowAlternates(Alternates):
    """Each row's own alternate answers: other, plausible answers to its question.

    Source: AltPO, arXiv:2409.13474, which samples 5 a question from the model itself.

    Args:
        path: a file of one JSON object a line, {question, alternate_answer}, with one answer or a list;
            open-unlearning's name for it, `alternate`, serves too, and lines of one question add up.
            Null takes the column `alternate_answer` of the forget rows themselves.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def answers(self, rows: Sequence[Row], seed: int) -> list[tuple[str, ...]]:
        if self.path is None:
            return [
                _of(row, row.alternate_answers, "data.alternates takes those of the rows") for row in rows
            ]
        known = _by_question(self.path)
        return [_of(row, known.get(row.question, ()), f"it is not in {self.path}") for row in rows]


def _of(row: Row, answers: tuple[str, ...], why: str) -> tuple[str, ...]:
    if not answers:
        raise InputError(
            f"the forget row {row.question[:60]!r} has no alternate_answer ({why}): give it one, or set "
            "data.alternates to Refusals"
        )
    return answers


def _by_question(path: str) -> dict[str, tuple[str, ...]]:
    known: dict[str, tuple[str, ...]] = {}
    for where, record in json_records(path):
        question = record.get("question")
        answers = texts_at(record, "alternate_answer", where) or texts_at(record, "alternate", where)
        if not isinstance(question, str) or not answers:
            raise InputError(
                f"{where}: needs 'question' and 'alternate_answer'; it has {', '.join(record) or 'none'}"
            )
        known[question] = known.get(question, ()) + answers
    return known
