"""What an error came of."""

import pytest

from dipo_pl.errors import InputError, causes


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
