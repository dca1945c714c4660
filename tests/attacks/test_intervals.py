"""Intervals are the quantiles of a slow loop over drawn rows, and cover what they should."""

import math
import random
import statistics

import numpy as np
import pytest

from dipo_pl.attacks.intervals import Intervals, area_draws, of_draws, of_rows, resampled
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
    assert of_rows({"unlearned": NEVER, "retain_only": NEVER}).gone is None


def test_what_is_missing():
    assert of_rows({"unlearned": [0.5]}) == Intervals(None, None, None, 1)
    assert of_rows({"unlearned": [None, None, 0.1]}).rows == 1
    alone = of_rows({"target": [0.9, 0.7], "unlearned": [0.4, 0.2]}, floor=0.1)
    assert alone.distance is None
    assert of_rows({"target": [0.1, 0.1], "unlearned": [0.1, 0.1]}, floor=0.1).gone is None


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_of_few_rows_it_is_students(rows):
    """Means of rows that are drawn again reach no farther than the rows."""
    now, never = [0.3, 0.1, 0.6, 0.2][:rows], NEVER[:rows]
    distances = [one - other for one, other in zip(now, never, strict=True)]
    mean, error = statistics.fmean(distances), statistics.stdev(distances) / math.sqrt(rows)
    half = {2: 12.7062, 3: 4.30265, 4: 3.18245}[rows] * error
    # A distance of shares is at most 1.
    expected = [max(-1.0, mean - half), min(1.0, mean + half)]
    assert of_rows({"unlearned": now, "retain_only": never}).distance == pytest.approx(
        expected, abs=0.05 * half
    )
    # Numbers of any other kind have no such bounds.
    now, never = ([1 + each for each in values] for values in (now, never))
    found = of_rows({"unlearned": now, "retain_only": never}).distance
    assert found == pytest.approx([mean - half, mean + half], abs=0.05 * half)


@pytest.mark.parametrize("rows", [2, 40, 59])
def test_rows_that_are_all_alike_have_the_width_of_the_rule_of_three(rows):
    unseen = 1 - 0.05 ** (1 / rows)
    found = of_rows({"target": [0.8] * rows, "unlearned": [0.2] * rows, "retain_only": [0.2] * rows})
    assert found.value == pytest.approx([0.2 - 0.2 * unseen, 0.2 + 0.8 * unseen])
    assert found.distance == pytest.approx([-unseen, unseen])
    assert found.gone == pytest.approx([1 - unseen, 1])
    assert (unseen <= 0.05) == (rows == 59)
    areas = {"unlearned": np.ones(2000), "retain_only": np.ones(2000)}
    assert of_draws(areas, rows, tests=4).distance[0] == pytest.approx(-1 + 0.0125 ** (1 / rows))
    # Other values than shares have no known bounds.
    assert of_rows({"unlearned": [7.0] * rows, "retain_only": [5.0] * rows}).distance == [2, 2]


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
