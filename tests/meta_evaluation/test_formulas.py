"""Faithfulness and robustness by counting and by hand."""

import pytest
from meta_formulas import (
    faithfulness,
    faithfulness_interval,
    quantization_robustness,
    relearning_robustness,
    robustness,
)
from meta_pool import METRICS, cases


def test_faithfulness_counts_pairs():
    knowing, ignorant = [0.9, 0.4, 0.4], [0.1, 0.4, 0.5]
    won = sum((p > n) + (p == n) / 2 for p in knowing for n in ignorant)
    assert faithfulness(knowing, ignorant) == pytest.approx(won / 9)
    assert faithfulness([1, 2], [3, 4]) == 0
    low, high = faithfulness_interval(knowing, ignorant)
    assert 0 <= low < won / 9 < high <= 1
    assert faithfulness_interval([2, 3], [0, 1]) == (1, 1)


@pytest.mark.parametrize(("values", "expected"), [
    # The unlearned model gains 0.4 where the one that never knew gains 0.1.
    ((0.1, 0.5, 0.1, 0.2), 0.25),
    ((0.1, 0.2, 0.1, 0.3), 1.0),
    ((0.3, 0.2, 0.1, 0.1), 1.0),
    ((0.1, 0.5, 0.2, 0.1), 0.0),
    ((0.1, 0.1, 0.2, 0.1), 1.0),
])  # fmt: skip
def test_relearning(values, expected):
    assert relearning_robustness(*values) == pytest.approx(expected)


def test_quantization_and_both():
    assert quantization_robustness(0.2, 0.4) == 0.5
    assert quantization_robustness(0.4, 0.2) == 1
    assert quantization_robustness(0.0, 0.0) == 1
    assert quantization_robustness(0.0, 0.1) == 0
    assert robustness(0.5, 1.0) == pytest.approx(2 / 3)
    assert robustness(0.0, 1.0) == 0


def test_the_pools_have_thirty_models_of_different_seeds():
    made = cases(30)
    for knows in (True, False):
        pool = [each for each in made if each.knows is knows]
        assert len(pool) == len({each.seed for each in pool}) == 30
        assert len({each.epochs for each in pool}) == 5
    assert sum(each.kind == "wrong answers" for each in made) == 15
    # An interrupted series has both kinds.
    assert {each.knows for each in made[:2]} == {True, False}
    assert len({each.key for each in METRICS}) == len(METRICS)
