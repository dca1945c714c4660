import random

import pytest
import torch

from dipo_pl.metrics.memorization import exact_memorization, extraction_strength


def loop_exact(predicted, true):
    right = 0
    for position in range(len(true)):
        right += predicted[position] == true[position]
    return right / len(true)


def loop_strength(predicted, true):
    """Try prefixes from none to the whole answer, after which nothing is left to miss."""
    for prefix in range(len(true) + 1):
        if predicted[prefix:] == true[prefix:]:
            return 1 - prefix / len(true)
    return None


@pytest.mark.parametrize("n", [1, 3, 200])
def test_matches_loop(n):
    """Answers of unequal length, nearly all tokens right towards the end."""
    rng = random.Random(0)
    targets = [[rng.randrange(50) for _ in range(rng.randint(1, 12))] for _ in range(n)]
    predictions = [
        [token if rng.random() < 0.3 + place / 8 else 99 for place, token in enumerate(answer)]
        for answer in targets
    ]
    for function, loop in ((exact_memorization, loop_exact), (extraction_strength, loop_strength)):
        expected = [loop(*pair) for pair in zip(predictions, targets, strict=True)]
        assert function(predictions, targets).tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("hits", "exact", "strength"), [
    ("1111", 1, 1),
    ("0000", 0, 0),
    ("0111", 3 / 4, 3 / 4),
    ("1011", 3 / 4, 1 / 2),
    ("0001", 1 / 4, 1 / 4),
    # open-unlearning gives these two 1/4.
    ("1110", 3 / 4, 0),
    ("0010", 1 / 4, 0),
    ("1", 1, 1),
    ("0", 0, 0),
])  # fmt: skip
def test_worked_by_hand(hits, exact, strength):
    targets = [[5] * len(hits)]
    predictions = [[5 if hit == "1" else 6 for hit in hits]]
    assert exact_memorization(predictions, targets).tolist() == [exact]
    assert extraction_strength(predictions, targets).tolist() == [strength]


def test_ids_past_what_a_float_tells_apart():
    assert exact_memorization([[2**53]], [[2**53 + 1]]).tolist() == [0]
    assert exact_memorization([torch.tensor([255], dtype=torch.uint8)], [torch.tensor([255])]).tolist() == [1]
