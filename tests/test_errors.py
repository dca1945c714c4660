"""Causes of an error, and the checks of arguments."""

import math
from functools import partial

import pytest

from dipo_pl.errors import InputError, causes, check_count, check_number, check_objects, check_share


def test_each_cause_once_also_of_an_error_that_came_of_itself():
    first, second = OSError("first"), ValueError("second")
    second.__cause__, first.__context__ = first, second
    assert list(causes(second)) == [second, first]


def test_what_is_said_not_to_be_a_cause_is_none():
    def handled():
        try:
            raise InputError("handled")
        except InputError:
            raise ValueError("another") from None

    with pytest.raises(ValueError, match="another") as raised:
        handled()
    assert list(causes(raised.value)) == [raised.value]


@pytest.mark.parametrize(("check", "good", "bad", "stated"), [
    (partial(check_count), [1, 7, None], [0, -1], "must be at least 1"),
    (partial(check_count, minimum=0), [0, 3], [-1], "must be at least 0"),
    (partial(check_number), [-2.5, 0.0, None], [math.nan, math.inf, -math.inf], "must be a finite number"),
    (partial(check_number, above=0), [1e-9], [0.0, -1.0, math.inf], "must be a finite number > 0"),
    (partial(check_number, minimum=0, below=1), [0.0, 0.99], [-0.1, 1.0], "must be a finite number >= 0 and < 1"),
    (partial(check_number, maximum=2), [2.0], [2.1], "must be a finite number <= 2"),
    (partial(check_share), [1.0, 0.5, None], [0.0, 1.1, math.nan, -0.5], "must be a share in (0, 1]"),
    (partial(check_share, zero=True, one=False), [0.0, 0.5], [1.0, -0.1], "must be a share in [0, 1)"),
])  # fmt: skip
def test_a_check_lets_its_range_through_and_names_argument_and_value_of_the_rest(check, good, bad, stated):
    for value in good:
        check("data.thing", value)
    for value in bad:
        with pytest.raises(InputError) as raised:
            check("data.thing", value)
        assert str(raised.value) == f"data.thing {stated} (got {value})"


@pytest.mark.parametrize(
    ("value", "stated"),
    [("Thing", "such as Thing() (got 'Thing')"), (OSError, "such as OSError() (got <class 'OSError'>)")],
)
def test_a_string_or_a_class_is_no_object(value, stated):
    check_objects("data", first=OSError(), second=None, third=1.5)
    with pytest.raises(InputError) as raised:
        check_objects("data", first=OSError(), second=value)
    assert str(raised.value) == f"data.second must be an instance: pass an object {stated}"
