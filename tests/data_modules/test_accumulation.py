"""Gradient accumulation that follows from a global batch size."""

import pytest

from dipo_pl.data_modules.training_batches import accumulated_batches
from dipo_pl.errors import InputError


@pytest.mark.parametrize(
    ("size", "batch_size", "ranks", "expected"), [(8, 8, 1, 1), (8, 2, 1, 4), (12, 2, 3, 2)]
)
def test_batches_of_a_step(size, batch_size, ranks, expected):
    assert accumulated_batches(size, batch_size, ranks) == expected
    assert accumulated_batches(size, batch_size, ranks, given=expected) == expected


@pytest.mark.parametrize(("size", "batch_size", "ranks", "given", "message"), [
    (12, 8, 1, 1, "1 device with data.batch_size 8 take 8 rows at once, .*: a data.batch_size of 6 does$"),
    (4, 8, 1, 1, "take 8 rows at once, .*: a data.batch_size of 4 does$"),
    (7, 2, 2, 1, "2 devices with data.batch_size 2 take 4 rows at once, .*: a multiple of 2 does$"),
    (16, 8, 1, 4, "16 and trainer.accumulate_grad_batches 4 both say"),
])  # fmt: skip
def test_what_does_not_divide_is_refused(size, batch_size, ranks, given, message):
    with pytest.raises(InputError, match=message):
        accumulated_batches(size, batch_size, ranks, given)
