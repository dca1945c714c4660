import math
import random
from fractions import Fraction

import pytest
import torch

from dipo_pl.metrics.forget_quality import forget_quality


def draw(n, shift, seed=0):
    """Return two samples without a common value, so that the count below is exact."""
    rng = random.Random(seed)
    return [rng.lognormvariate(0, 1) for _ in range(n)], [rng.lognormvariate(shift, 1) for _ in range(n)]


def loop_statistic(first, second):
    largest = 0.0
    for x in first + second:
        below = [sum(value <= x for value in sample) / len(sample) for sample in (first, second)]
        largest = max(largest, abs(below[0] - below[1]))
    return largest


def loop_log10_p(n, h):
    """Return log10 of the share of orders of two samples of n whose counts come to differ by h, one by one."""
    paths = [1 if j < h else 0 for j in range(n + 1)]
    for i in range(1, n + 1):
        paths[0] = 1 if i < h else 0
        for j in range(1, n + 1):
            paths[j] = paths[j] + paths[j - 1] if abs(i - j) < h else 0
    orders = math.comb(2 * n, n)
    return math.log10(orders - paths[n]) - math.log10(orders)


@pytest.mark.parametrize(("n", "shift"), [(1, 0.0), (2, 0.0), (7, 1.0), (40, 0.5), (200, 0.3)])
def test_matches_loop(n, shift):
    first, second = draw(n, shift)
    p_value, log10_p, statistic = forget_quality(first, second)
    expected = loop_statistic(first, second)
    assert statistic == pytest.approx(expected, abs=1e-12)
    assert log10_p == pytest.approx(loop_log10_p(n, round(n * expected)), abs=1e-9)
    assert p_value == pytest.approx(10**log10_p, rel=1e-12)


@pytest.mark.parametrize(
    ("n", "floor"), [(40, "1.860e-23"), (200, "1.943e-119"), (300, "1.480e-179"), (400, "1.064e-239")]
)
def test_floor_of_complete_separation(n, floor):
    p_value, log10_p, statistic = forget_quality([1.0 + i for i in range(n)], [1000.0 + i for i in range(n)])
    assert f"{p_value:.3e}" == floor
    # Two of all orders of the values are separated.
    assert p_value == pytest.approx(float(Fraction(2, math.comb(2 * n, n))), rel=1e-9)
    assert log10_p == math.log10(p_value)
    assert statistic == 1


# p below the normal floats; p is 0; p is 0, partly separated; p is 0, beyond SciPy's exact method.
@pytest.mark.parametrize(("n", "overlap"), [(515, 0), (600, 0), (600, 18), (12000, 0)])
def test_log10_p_outlives_p(n, overlap):
    first = [float(i) for i in range(n)]
    p_value, log10_p, statistic = forget_quality(first, [i + n - overlap - 0.5 for i in range(n)])
    assert p_value < 2.3e-308
    h = n - overlap
    assert statistic == pytest.approx(h / n)
    separated = (math.log(2) + 2 * math.lgamma(n + 1) - math.lgamma(2 * n + 1)) / math.log(10)
    assert log10_p == pytest.approx(loop_log10_p(n, h) if overlap else separated, rel=1e-12)


def test_depends_on_order_alone():
    first, second = (torch.tensor(sample, dtype=torch.float64) for sample in draw(60, 0.7))
    expected = forget_quality(first, second)
    assert forget_quality(1 / first, 1 / second) == pytest.approx(expected)
    assert forget_quality(first.log(), second.log()) == pytest.approx(expected)
    assert forget_quality(second, first) == pytest.approx(expected)
    assert forget_quality(first.flip(0), second.roll(7)) == pytest.approx(expected)


def test_identical_samples_cannot_be_told_apart():
    assert forget_quality([0.5, 0.7, 0.9], [0.9, 0.5, 0.7]) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(("unlearned", "retain", "line"), [
    ([0.1, 0.2, 0.3], [0.1, 0.2], r"unlearned and retain must have as many rows \(got 3 and 2\)"),
    ([0.1, math.nan, math.inf], [0.1] * 3, r"unlearned must be finite \(got nan at row 1, 2; 2 of 3 rows\)"),
    ([0.1, 0.2], [0.1, math.inf], r"retain must be finite \(got inf at row 1; 1 of 2 rows\)"),
    ([], [], r"unlearned must have at least one row \(got none\)"),
    ([0.1], [], r"retain must have at least one row \(got none\)"),
    ([0.1, 0.2], [[0.1, 0.2]], r"retain must have shape \[N\] \(got \[1, 2\]\)"),
])  # fmt: skip
def test_names_what_it_refuses(unlearned, retain, line):
    with pytest.raises(ValueError, match=line):
        forget_quality(unlearned, retain)
