"""Evaluation batches: every row, little padding, never more than the budget but for a row alone, equal shares."""

import random

import pytest

from dipo_pl.batch import Encoded
from dipo_pl.data_modules.evaluation_sets import evaluation_batches


def row(*lengths):
    return [Encoded(tuple(range(length)), 1) for length in lengths]


def drawn(count, answers=3):
    draw = random.Random(0)
    return [row(*(draw.randint(2, 60) for _ in range(answers))) for _ in range(count)]


def padded(rows, batch):
    lengths = [len(answer.ids) for index in batch for answer in rows[index]]
    return len(lengths) * max(lengths)


def test_written_out():
    rows = [row(3, 4), row(9, 2), row(4, 1), row(8, 8), row(2, 2)]
    # 2 x 2 sequences of 9, then of 4; the fifth row would make 6 x 4 = 24.
    assert evaluation_batches(rows, 36) == [[1, 3], [0, 2, 4]]
    assert evaluation_batches(rows, 23) == [[1], [3], [0, 2], [4]]
    assert evaluation_batches(rows, 1) == [[1], [3], [0], [2], [4]]


@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("tokens", [1, 200, 1000, 10**6])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_all_rows_evenly(count, tokens, world_size):
    rows = drawn(count)
    shares = [evaluation_batches(rows, tokens, rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    batches = [batch for step in zip(*shares, strict=True) for batch in step]
    distinct = list(dict.fromkeys(map(tuple, batches)))
    assert sorted(index for batch in distinct for index in batch) == list(range(count))
    assert len(batches) - len(distinct) < world_size
    assert all(len(batch) == 1 or padded(rows, batch) <= tokens for batch in batches)


def test_batches_come_longest_first():
    rows = drawn(40)
    widths = [padded(rows, batch) // (3 * len(batch)) for batch in evaluation_batches(rows, 900)]
    assert widths == sorted(widths, reverse=True)


def test_many_ranks_have_rows_of_their_own():
    rows = drawn(40)
    firsts = [evaluation_batches(rows, 10**6, rank, 4)[0] for rank in range(4)]
    assert len({tuple(batch) for batch in firsts}) == 4


def test_less_is_padding_than_in_the_order_of_the_set():
    rows = drawn(200, answers=1)
    tokens = sum(len(answer.ids) for answers in rows for answer in answers)
    ours = sum(padded(rows, batch) for batch in evaluation_batches(rows, 1000))
    in_order = sum(padded(rows, range(start, start + 20)) for start in range(0, 200, 20))
    assert ours < 1.15 * tokens
    assert in_order > 1.5 * tokens
