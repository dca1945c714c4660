"""Companions of the forget rows in a batch: their questions with other answers."""

from collections.abc import Sequence

from dipo_pl.data_modules.alternates import Alternates, RowAlternates
from dipo_pl.errors import InputError
from dipo_pl.rows import Row


def companion_answers(
    kind: str, rows: Sequence[Row], alternates: Alternates | None, seed: int
) -> list[tuple[str, ...]]:
    """Return other answers to each forget row's question, the same number for every row.

    Args:
        kind: `alternate`: those that `alternates` gives, or else the rows' own; `mismatched`: the answer
            of the next row, the first one's for the last.
        rows: the forget rows.
        alternates: None takes the rows' own.
        seed: for alternates that are drawn.

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
