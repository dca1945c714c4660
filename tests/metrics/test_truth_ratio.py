import math
import random

import pytest
import torch

from dipo_pl.metrics.truth_ratio import (
    arithmetic_truth_ratio,
    log_arithmetic_truth_ratio,
    log_truth_ratio,
    truth_ratio,
    truth_ratio_closeness,
    truth_ratio_margin,
)


def loop_geometric(right, others, epsilon=0.0):
    product = 1.0
    for other in others:
        product *= math.exp(-other)
    return product ** (1 / len(others)) / (math.exp(-right) + epsilon)


def loop_arithmetic(right, others):
    total = 0.0
    for other in others:
        total += math.exp(-other)
    return total / len(others) / math.exp(-right)


def draw(n, k, seed=0):
    rng = random.Random(seed)
    correct = [rng.uniform(0, 8) for _ in range(n)]
    return correct, [[rng.uniform(0, 8) for _ in range(k)] for _ in range(n)]


@pytest.mark.parametrize("epsilon", [0.0, 1e-10, 0.25])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 5), (117, 3)])
def test_matches_loop(n, k, epsilon):
    correct, wrong = draw(n, k)
    geometric = [loop_geometric(*row, epsilon) for row in zip(correct, wrong, strict=True)]
    assert truth_ratio(correct, wrong, epsilon).tolist() == pytest.approx(geometric, rel=1e-12)
    logs = [math.log(ratio) for ratio in geometric]
    assert log_truth_ratio(correct, wrong, epsilon).tolist() == pytest.approx(logs, abs=1e-12)
    arithmetic = [loop_arithmetic(*row) for row in zip(correct, wrong, strict=True)]
    assert arithmetic_truth_ratio(correct, wrong).tolist() == pytest.approx(arithmetic, rel=1e-12)


def test_worked_by_hand():
    # Right answer 1/2, wrong ones 1/2 and 1/8: geometric mean 1/4, arithmetic mean 5/16.
    correct, wrong = [math.log(2)], [[math.log(2), math.log(8)]]
    assert truth_ratio(correct, wrong).item() == pytest.approx(1 / 2)
    assert log_truth_ratio(correct, wrong).item() == pytest.approx(-math.log(2))
    assert arithmetic_truth_ratio(correct, wrong).item() == pytest.approx(5 / 8)


def test_epsilon_hides_a_collapsed_model():
    # Where all answers have probability 1e-10 it halves the ratio, and further down nothing is left of it.
    level = [math.log(1e10), 5000.0]
    wrong = [[nll] * 3 for nll in level]
    assert truth_ratio(level, wrong).tolist() == pytest.approx([1, 1])
    assert truth_ratio(level, wrong, epsilon=1e-10).tolist() == pytest.approx([0.5, 0])
    assert log_truth_ratio(level, wrong, 1e-10)[1].item() == pytest.approx(math.log(1e10) - 5000)


def test_order_of_wrong_answers_does_not_matter():
    correct, wrong = draw(20, 5)
    flipped = [row[::-1] for row in wrong]
    for ratio in (truth_ratio, log_truth_ratio, arithmetic_truth_ratio):
        torch.testing.assert_close(ratio(correct, wrong), ratio(correct, flipped))
    assert (arithmetic_truth_ratio(correct, wrong) >= truth_ratio(correct, wrong)).all()


def test_losses_in_the_thousands():
    # exp(-5000) is 0 in any float; open-unlearning's 1e-10 would make both ratios 0.
    correct, wrong = [5000.0], [[5000.0, 5000.0, 5000.0]]
    assert truth_ratio(correct, wrong).item() == 1
    assert arithmetic_truth_ratio(correct, wrong).item() == pytest.approx(1, rel=1e-12)
    far = [9000.0, 1.0], [[1.0], [9000.0]]
    assert log_truth_ratio(*far).tolist() == log_arithmetic_truth_ratio(*far).tolist() == [8999, -8999]
    assert truth_ratio(*far).tolist() == [math.inf, 0]
    assert truth_ratio_closeness(truth_ratio(*far)).tolist() == [0, 0]
    assert truth_ratio_margin(truth_ratio(*far)).tolist() == [0, 1]


def test_aggregations_match_loop():
    ratios = [0.0, 0.25, 0.999, 1.0, 1.25, 4.0, 1e6]
    closeness = [min(r, 1 / r) if r else 0.0 for r in ratios]
    assert truth_ratio_closeness(ratios).tolist() == pytest.approx(closeness, rel=1e-15)
    margin = [1 - r if r < 1 else 0.0 for r in ratios]
    assert truth_ratio_margin(ratios).tolist() == pytest.approx(margin, rel=1e-15)


def test_closeness_does_not_change_under_inversion():
    ratios = truth_ratio(*draw(50, 5))
    torch.testing.assert_close(truth_ratio_closeness(ratios), truth_ratio_closeness(1 / ratios))
