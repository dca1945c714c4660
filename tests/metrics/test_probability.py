import math
import random

import pytest
import torch

from dipo_pl.metrics.probability import answer_probability, option_probability


def draw(n, k, seed=0):
    rng = random.Random(seed)
    correct = [rng.uniform(0, 8) for _ in range(n)]
    return correct, [[rng.uniform(0, 8) for _ in range(k)] for _ in range(n)]


def loop_option(correct, wrong, epsilon=0.0):
    result = []
    for right, others in zip(correct, wrong, strict=True):
        total = math.e**-right + epsilon
        for other in others:
            total += math.e**-other
        result.append(math.e**-right / total)
    return result


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 5), (117, 3)])
def test_matches_loop(n, k):
    correct, wrong = draw(n, k)
    assert answer_probability(correct).tolist() == pytest.approx([math.e**-x for x in correct], rel=1e-12)
    for epsilon in (0.0, 1e-10, 0.25):
        expected = loop_option(correct, wrong, epsilon)
        assert option_probability(correct, wrong, epsilon).tolist() == pytest.approx(expected, rel=1e-12)


def test_worked_by_hand():
    assert answer_probability([0.0, math.log(2)]).tolist() == pytest.approx([1, 0.5])
    # 1/2 against 1/4 and 1/4; 1/10 against 1/2 and 1/5.
    correct = [math.log(2), math.log(10)]
    wrong = [[math.log(4), math.log(4)], [math.log(2), math.log(5)]]
    assert option_probability(correct, wrong).tolist() == pytest.approx([1 / 2, 1 / 8])


def test_losses_in_the_thousands():
    wrong = [[5000.0, 5000.0, 5000.0], [4000.0, 1.0, 0.0], [5000.0, 9000.0, 9999.0]]
    assert option_probability([5000.0, 5000.0, 0.0], wrong).tolist() == [0.25, 0.0, 1.0]
    assert answer_probability([5000.0]).tolist() == [0.0]


def test_options_share_one_in_any_order():
    correct, wrong = draw(20, 5)
    columns = torch.cat([torch.tensor(correct).double()[:, None], torch.tensor(wrong).double()], dim=1)
    shares = [option_probability(columns[:, i], columns.roll(-i, dims=1)[:, 1:]) for i in range(6)]
    torch.testing.assert_close(sum(shares), torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(shares[0], option_probability(correct, [row[::-1] for row in wrong]))


def test_epsilon_hides_a_collapsed_model():
    level = [math.log(1e10), 5000.0]
    assert option_probability(level, [[nll] for nll in level]).tolist() == pytest.approx([1 / 2, 1 / 2])
    assert option_probability(level, [[nll] for nll in level], 1e-10).tolist() == pytest.approx([1 / 3, 0])
