"""The numbers behind the pictures, against loops over all pairs and thresholds."""

import random

import pytest

from dipo_pl.evaluation.published_results import published
from dipo_pl.report.curves import ecdf, ks_gap, roc


def samples(seed, ties):
    draw = random.Random(seed)
    return [
        [draw.choice(range(6)) / 2 if ties else draw.gauss(shift, 1) for _ in range(n)]
        for shift, n in ((0, 17), (1, 12))
    ]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_ecdf_is_the_share_of_values_at_most_each(seed, ties):
    values = samples(seed, ties)[0]
    places, shares = ecdf(values)
    assert places.tolist() == sorted(set(values))
    for place, share in zip(places, shares, strict=True):
        assert share == pytest.approx(sum(each <= place for each in values) / len(values))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_gap_is_the_largest_distance_and_lies_where_it_says(seed, ties):
    one, other = samples(seed, ties)
    gap = ks_gap(one, other)

    def distance(place):
        return abs(sum(v <= place for v in one) / len(one) - sum(v <= place for v in other) / len(other))

    assert gap.size == pytest.approx(max(distance(place) for place in one + other))
    assert gap.size == pytest.approx(distance(gap.at))
    assert gap.one == pytest.approx(sum(v <= gap.at for v in one) / len(one))
    assert gap.other == pytest.approx(sum(v <= gap.at for v in other) / len(other))


def test_gap_of_the_published_logs_is_their_statistic():
    full, retain = (
        published(f"llama2-7b_{name}").sets["forget"].values("log_truth_ratio")
        for name in ("full", "retain90")
    )
    assert ks_gap(full, retain).size == pytest.approx(0.396667, abs=1e-6)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_area_is_the_share_of_pairs_and_each_point_is_a_threshold(seed, ties):
    forget, holdout = samples(seed, ties)
    curve = roc(forget, holdout)
    pairs = [(h > f) + (h == f) / 2 for f in forget for h in holdout]
    assert curve.auc == pytest.approx(sum(pairs) / len(pairs))
    points = [(0.0, 0.0)]
    for threshold in sorted({*forget, *holdout}):
        points.append(tuple(sum(v <= threshold for v in each) / len(each) for each in (holdout, forget)))
    found = zip(curve.false_positives.tolist(), curve.true_positives.tolist(), strict=True)
    assert [pytest.approx(each) for each in points] == list(found)


def test_a_forget_set_that_scores_lower_throughout_is_fully_recognised():
    assert roc([1.0, 2.0], [3.0, 4.0]).auc == 1.0
    assert roc([3.0, 4.0], [1.0, 2.0]).auc == 0.0
    assert roc([1.0, 1.0], [1.0]).auc == 0.5
