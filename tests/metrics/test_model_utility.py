import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch

from dipo_pl.metrics.model_utility import model_utility


@pytest.mark.parametrize("count", [1, 2, 9])
def test_matches_loop(count):
    rng = random.Random(count)
    values = [rng.uniform(0.01, 1) for _ in range(count)]
    inverses = Fraction(0)
    for value in values:
        inverses += 1 / Fraction(value)
    assert model_utility(values) == pytest.approx(float(count / inverses), rel=1e-14)


@pytest.mark.parametrize(
    "convert", [tuple, np.array, torch.tensor, lambda x: dict(enumerate(torch.tensor(x)))]
)
def test_worked_by_hand(convert):
    # 3 / (1 + 2 + 4)
    result = model_utility(convert([1.0, 0.5, 0.25]))
    assert type(result) is float
    assert result == pytest.approx(3 / 7)


def test_any_zero_gives_zero():
    assert model_utility([0.9, 0.0, 0.9]) == 0
    assert type(model_utility({"a": 0.0})) is float


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_names_the_value_it_refuses(bad):
    with pytest.raises(ValueError, match=r"world_facts/rouge must be a finite number >= 0 \(got \S+\)"):
        model_utility({"retain/rouge": 0.0, "world_facts/rouge": bad})
    with pytest.raises(ValueError, match=r"values\[2\] must be a finite number >= 0"):
        model_utility([0.5, 0.0, bad])


def test_refuses_values_that_are_not_averaged():
    with pytest.raises(ValueError, match=r"retain/rouge must be one number \(got tensor\(\[0.1"):
        model_utility({"retain/rouge": torch.tensor([0.1, 0.2])})
    with pytest.raises(ValueError, match=r"values\[0\] must be one number \(got \[0.1, 0.2\]\)"):
        model_utility([[0.1, 0.2]])


@pytest.mark.parametrize("empty", [[], {}])
def test_refuses_no_values(empty):
    with pytest.raises(ValueError, match=r"at least one value \(got none\)"):
        model_utility(empty)
