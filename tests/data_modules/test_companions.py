"""What stands beside the forget rows: alternate and mismatched answers, and what they need."""

import pytest

from dipo_pl.data_modules.alternates import Alternates, RowAlternates
from dipo_pl.data_modules.companions import companion_answers
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
    answers = companion_answers("mismatched", rows((), (), ()), None, 0)
    assert answers == [("1.",), ("2.",), ("0.",)]
    assert companion_answers("mismatched", rows((), ()), None, 0) == [("1.",), ("0.",)]


def test_one_row_has_no_other():
    message = (
        r"^model\.forget_loss wants .* another one's answer, and there is 1 forget row: give at least 2$"
    )
    with pytest.raises(InputError, match=message):
        companion_answers("mismatched", rows(()), None, 0)


def test_the_rows_own_unless_others_are_given():
    given = rows(("a", "b"), ("c", "d"))
    assert companion_answers("alternate", given, None, 1) == [("a", "b"), ("c", "d")]
    assert companion_answers("alternate", given, Numbered(), 1) == [("1 0.",), ("1 1.",)]


def test_none_at_all_says_what_to_set():
    message = (
        r"^model\.forget_loss wants another answer to each forget row's question, and no row has an "
        r"alternate_answer: set data\.alternates to Refusals, or to RowAlternates with a path$"
    )
    with pytest.raises(InputError, match=message):
        companion_answers("alternate", rows((), ()), None, 0)


def test_none_of_one_row_names_it():
    for alternates in (None, RowAlternates()):
        with pytest.raises(InputError, match=r"^the forget row '1\?' has no alternate_answer"):
            companion_answers("alternate", rows(("a",), ()), alternates, 0)


@pytest.mark.parametrize(("alternates", "counts"), [(None, "1 or 3"), (Numbered(), "1 or 2")])
def test_more_of_one_row_than_of_another(alternates, counts):
    given = rows(("a",), ("b", "c", "d"), ("e",))
    message = f"^forget rows have {counts} alternate answers: give every row the same number$"
    with pytest.raises(InputError, match=message):
        companion_answers("alternate", given, alternates, 2)


@pytest.mark.parametrize("section", ["alternate", "mismatched"])
def test_a_text_has_no_question(section):
    given = [*rows(("a",)), Row((), "Once upon a time.", alternate_answers=("b",))]
    message = (
        rf"^model\.forget_loss wants {section} answers .* begins 'Once upon a time\.' is a text without one: "
    )
    with pytest.raises(InputError, match=message):
        companion_answers(section, given, None, 0)


def test_an_unknown_section():
    with pytest.raises(
        InputError, match=r"^model\.forget_loss wants the section 'other'; batches can hold forget, "
    ):
        companion_answers("other", rows(("a",)), None, 0)
