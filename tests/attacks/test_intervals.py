"""Intervals are the quantiles of a slow loop over drawn rows, and cover what they should."""

import math
import random
import statistics

import numpy as np
import pytest

from dipo_pl.attacks.intervals import area_draws, of_draws, of_rows, resampled
from dipo_pl.metrics.membership import auroc

TARGET = [0.9, 0.8, 1.0, 0.7, 0.95, 0.85]
NOW = [0.3, 0.1, 0.5, None, 0.2, 0.6]
NEVER = [0.2, 0.1, 0.3, 0.4, 0.25, 0.1]


FEW = 0.5 * math.erfc(math.sqrt(5 / 4) * 2.7764451051977987 / math.sqrt(2))


def quantile(values, share):
    """By linear interpolation, in plain Python."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    return ordered[low] + (ordered[min(low + 1, len(ordered) - 1)] - ordered[low]) * (place - low)


def test_rows_are_drawn_for_all_models_at_once():
    found = of_rows({"target": TARGET, "unlearned": NOW, "retain_only": NEVER})
    kept = [row for row in range(6) if NOW[row] is not None]
    drawn = [[kept[place] for place in rows] for rows in resampled(5).tolist()]
    means = {
        name: [statistics.fmean(values[row] for row in rows) for rows in drawn]
        for name, values in (("target", TARGET), ("now", NOW), ("never", NEVER))
    }
    distances = [now - never for now, never in zip(means["now"], means["never"], strict=True)]
    gone = [
        (target - now) / (target - never)
        for target, now, never in zip(means["target"], means["now"], means["never"], strict=True)
    ]
    assert found.rows == 5
    for interval, values in (
        (found.value, means["now"]),
        (found.distance, distances),
        (found.gone, gone),
    ):
        # Of 5 rows, Student's quantile is 2.7764: Phi(-1.1180 * 2.7764).
        assert interval == pytest.approx([quantile(values, FEW), quantile(values, 1 - FEW)], abs=1e-12)
    # On the same rows: models that are equal do not differ.
    same = of_rows({"unlearned": NEVER, "retain_only": NEVER})
    assert same.distance == [0, 0]
    assert same.gone is None


def test_what_is_missing():
    assert of_rows({"unlearned": [0.5]}) is None
    assert of_rows({"unlearned": [None, None, 0.1]}) is None
    alone = of_rows({"target": [0.9, 0.7], "unlearned": [0.4, 0.2]}, floor=0.1)
    assert alone.distance is None
    # 0.5 of a way from 0.9 to 0.1, or 0.5 of one from 0.7; two rows say nothing, so that it is all that was drawn.
    assert alone.gone == pytest.approx([0.5 / 0.8, 0.5 / 0.6])
    assert of_rows({"target": [0.1, 0.1], "unlearned": [0.1, 0.1]}, floor=0.1).gone is None


def test_areas_are_those_of_the_drawn_rows():
    members, others = [0.1, 0.5, 0.5, 2.0], [0.5, 1.0, 3.0]
    areas = area_draws(members, others)
    for place in (0, 1, 1999):
        seen = [members[each] for each in resampled(4)[place]]
        unseen = [others[each] for each in resampled(3, 1)[place]]
        assert areas[place] == pytest.approx(auroc(seen, unseen), abs=1e-12)


def test_a_choice_among_several_is_corrected():
    draws = {"unlearned": np.linspace(0, 1, 2001), "retain_only": np.full(2001, 5.0)}
    # So many rows that Student's quantiles are the normal ones.
    once, of_four = (of_draws(draws, 10**9, tests=tests) for tests in (1, 4))
    assert once.distance == pytest.approx([-4.975, -4.025], abs=1e-6)
    assert of_four.distance == pytest.approx([-5 + 0.05 / 8, -4 - 0.05 / 8], abs=1e-6)
    assert once.value == of_four.value


@pytest.mark.parametrize("rows", [6, 40])
def test_about_95_of_100_intervals_hold_the_mean(rows):
    drawn = random.Random(0)
    held = 0
    for _ in range(200):
        values = [[drawn.random() for _ in range(rows)] for _ in range(2)]
        low, high = of_rows({"unlearned": values[0], "retain_only": values[1]}).distance
        held += low <= 0 <= high
    assert 0.91 <= held / 200 <= 0.99
