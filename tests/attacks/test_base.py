"""The base of attacks: rows of an outcome."""

from dipo_pl.attacks.base import numbered


def test_rows_have_their_number_and_the_value_of_each_model():
    by_row = {"unlearned": [0.1, 0.2], "target": [0.8, None]}
    first, second = {"unlearned": 0.1, "target": 0.8}, {"unlearned": 0.2, "target": None}
    assert numbered(by_row) == [{"row": 0} | first, {"row": 1} | second]
    assert numbered(by_row, [3, 5]) == [{"row": 3} | first, {"row": 5} | second]
