"""Rows: what identifies them, what is measured of them, and their overlap."""

from dipo_pl.rows import Row, shared_rows

ROW = Row((("user", "Hi"), ("assistant", "Yes?"), ("user", "Who?")), "Me.", "It was me.", ("You.",))


def test_question_and_texts():
    assert (ROW.question, Row((), "Once.").question) == ("Who?", "")
    assert ROW.texts() == ["Hi", "Yes?", "Who?", "Me."]


def test_measured_answers():
    assert ROW.measured_answers == ["Me.", "It was me.", "You."]
    assert Row((), "Me.", wrong_answers=("You.",)).measured_answers == ["Me.", "Me.", "You."]
    assert Row((), "Me.", "It was me.").measured_answers == ["Me."]


def test_shared_rows_counts_forget_rows_whose_conversation_is_retained():
    one, two, three = (Row((("user", "Who?"),), answer) for answer in ("Me.", "You.", "They."))
    other_question = Row((("user", "Whose?"),), "Me.")
    paraphrased = Row(one.messages, one.answer, "It was me.", ("You.",))
    assert shared_rows([one, two], [three, other_question]) == 0
    assert shared_rows([one, two, one], [three, paraphrased, one]) == 2
    assert shared_rows([paraphrased], [one]) == 1
