"""Alternate and mismatched answers to the forget rows' questions, and what they need."""

import pytest

from dipo_pl.data_modules.alternates import Alternates, RowAlternates, companion_answers
from dipo_pl.errors import InputError
from dipo_pl.rows import Row


def rows(*alternates):
    return [
        Row((("user", f"{number}?"),), f"{number}.", alternate_answers=each)
        for number, each in enumerate(alternates)
    ]


class Numbered(Alternates):
    def answers(self, rows, seed):
        return [(f"{seed} {row.answer}",) * (1 + index % seed) for index, row in enumerate(rows)]


def test_the_next_rows_answer_and_the_first_ones_for_the_last():
    assert companion_answers("mismatched", rows((), (), ()), None, 0) == [("1.",), ("2.",), ("0.",)]
    assert companion_answers("mismatched", rows((), ()), None, 0) == [("1.",), ("0.",)]


def test_the_rows_own_unless_others_are_given():
    given = rows(("a", "b"), ("c", "d"))
    assert companion_answers("alternate", given, None, 1) == [("a", "b"), ("c", "d")]
    assert companion_answers("alternate", given, Numbered(), 1) == [("1 0.",), ("1 1.",)]


TEXT = Row((), "Once upon a time.", alternate_answers=("b",))
UNEVEN = rows(("a",), ("b", "c", "d"), ("e",))


@pytest.mark.parametrize(("kind", "given", "alternates", "message"), [
    ("mismatched", rows(()), None, "needs .* another row's answer, and there is 1 forget row: give at least 2$"),
    ("alternate", rows((), ()), None,
     r"needs another answer .* set data\.alternates to Refusals, or to RowAlternates with a path$"),
    ("alternate", rows(("a",), ()), None, r"^the forget row '1\?' has no alternate_answer"),
    ("alternate", rows(("a",), ()), RowAlternates(), r"^the forget row '1\?' has no alternate_answer"),
    ("alternate", UNEVEN, None, "^forget rows have 1 or 3 alternate answers: give every row the same number$"),
    ("alternate", UNEVEN, Numbered(), "^forget rows have 1 or 2 alternate answers"),
    ("alternate", [*rows(("a",)), TEXT], None, r"needs alternate .* 'Once upon a time\.' has no question: "),
    ("mismatched", [*rows(("a",)), TEXT], None, "needs mismatched .* has no question: "),
    ("other", rows(("a",)), None, "^model.forget_loss needs sequences of the kind 'other'; batches can hold "),
])  # fmt: skip
def test_what_is_missing_is_said(kind, given, alternates, message):
    with pytest.raises(InputError, match=message):
        companion_answers(kind, given, alternates, 2)
