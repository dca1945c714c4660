import itertools
import math
import random

import pytest
import torch

from dipo_pl.errors import InputError
from dipo_pl.metrics.leakage import leak_at_k, leaked, upper_bound


@pytest.mark.parametrize(
    ("n", "c", "k"), [(1, 0, 1), (1, 1, 1), (6, 2, 3), (6, 5, 2), (7, 3, 7), (8, 1, 4), (9, 0, 5)]
)
def test_matches_a_count_of_all_choices(n, c, k):
    samples = [True] * c + [False] * (n - c)
    choices = list(itertools.combinations(samples, k))
    assert leak_at_k([c], n, k).item() == pytest.approx(sum(map(any, choices)) / len(choices), rel=1e-15)


def test_leak_at_k_worked_by_hand():
    # 1 - C(2,2)/C(4,2), no choice without a leak, none with one.
    assert leak_at_k([2, 3, 0], 4, 2).tolist() == [5 / 6, 1, 0]
    # One sample is the share of leaks, all of them whether there is any.
    assert leak_at_k([0, 1, 16, 64], 64, 1).tolist() == [0, 1 / 64, 1 / 4, 1]
    assert leak_at_k([0, 1, 16, 64], 64, 64).tolist() == [0, 1, 1, 1]
    # One leak of 64 is found by 16 samples in a quarter of all choices, though C(64, 16) is above 4e14.
    assert leak_at_k([1], 64, 16).item() == 1 / 4


def loop_bound(x, n, confidence):
    """The largest p at which at most x of n is no rarer than 1 - confidence, by halving."""
    low, high = 0.0, 1.0
    for _ in range(100):
        p = (low + high) / 2
        tail = math.fsum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(x + 1))
        low, high = (p, high) if tail > 1 - confidence else (low, p)
    return low


@pytest.mark.parametrize(("x", "n"), [(0, 1), (0, 40), (1, 40), (39, 40), (40, 40), (7, 13)])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_the_bound_matches_a_loop(x, n, confidence):
    values = [1] * x + [0] * (n - x)
    expected = 1 if x == n else loop_bound(x, n, confidence)
    assert upper_bound(values, confidence) == pytest.approx(expected, rel=1e-9)


def test_the_bound_worked_by_hand():
    assert upper_bound([0.0] * 40) == pytest.approx(1 - 0.05 ** (1 / 40), rel=1e-12)
    # 2.2 rows count as 3; the roundings of 13 times 2/13 add up to more than 2, and count as 2.
    assert upper_bound([0.1] * 22) == upper_bound([1] * 3 + [0] * 19)
    assert torch.tensor([2 / 13] * 13, dtype=torch.float64).sum() > 2
    assert upper_bound([2 / 13] * 13) == upper_bound([1] * 2 + [0] * 11)


def test_the_bound_holds_as_often_as_it_says():
    rng = random.Random(0)
    chances = [rng.random() * 0.2 for _ in range(30)]
    true = sum(chances) / 30
    held = [upper_bound([rng.random() < each for each in chances]) >= true for _ in range(400)]
    assert sum(held) / 400 > 0.93


def test_which_texts_leak():
    answer = "Her father is a civil engineer in Taipei."
    texts = [
        "her father is a civil engineer in taipei, they say",  # the whole answer
        "Her father is a civil engineer in Rome.",  # 7 of 8 words
        "Her father is a baker in Rome.",
        "He works as a CIVIL\n engineer.",
        "A civilengineer, or uncivil engineer.",
        "",
    ]
    assert leaked(texts, answer).tolist() == [True, True, False, False, False, False]
    assert leaked(texts, answer, recall=0.9).tolist() == [True, False, False, False, False, False]
    assert leaked(texts, answer, recall=7 / 8).tolist() == [True, True, False, False, False, False]
    assert leaked(texts, answer, "civil engineer", 1.0).tolist() == [True, True, False, True, False, False]
    # No word ends within an entity's marks, and these are no pattern.
    assert leaked(["the LGBTQ+ community", "LGBTQQ community"], "x", "LGBTQ+").tolist() == [True, False]
    # Without spaces an entity has no ends; in other scripts it has.
    assert leaked(["他住在北京市", "他住在上海"], "x", "北京").tolist() == [True, False]
    assert leaked(["живёт в Риме", "живёт в Римелле"], "x", "Риме").tolist() == [True, False]
    assert leaked([], answer).tolist() == []


@pytest.mark.parametrize(
    ("call", "error", "line"),
    [
        (lambda: leak_at_k([1], 4, 0), InputError, r"k must be at least 1 \(got 0\)"),
        (lambda: leak_at_k([1], 4, 5), InputError, r"samples, for leak@5, must be at least 5 \(got 4\)"),
        (
            lambda: leak_at_k([5], 4, 1),
            ValueError,
            r"leaks must be whole numbers from 0 to 4 \(got 5 at row 0",
        ),
        (lambda: leak_at_k([0, -1], 4, 1), ValueError, r"whole numbers from 0 to 4 \(got -1 at row 1"),
        (lambda: leak_at_k([0.5], 4, 1), ValueError, r"whole numbers from 0 to 4 \(got 0.5"),
        (lambda: leak_at_k([], 4, 1), ValueError, "leaks must have at least one row"),
        (lambda: upper_bound([1.5]), ValueError, r"values must be in \[0, 1\] \(got 1.5"),
        (lambda: upper_bound([-0.5]), ValueError, r"values must be in \[0, 1\] \(got -0.5"),
        (lambda: upper_bound([0.5], 1.0), InputError, r"confidence must be a share in \(0, 1\) \(got 1.0\)"),
        (lambda: leaked("abc", "a"), ValueError, "texts must be a list of strings"),
        (lambda: leaked(["a"], "a", " "), ValueError, r"entity must have a word \(got ' '\)"),
        (lambda: leaked(["a"], "a", recall=0), InputError, r"recall must be a share in \(0, 1\] \(got 0\)"),
    ],
)
def test_names_what_it_refuses(call, error, line):
    with pytest.raises(error, match=line):
        call()
