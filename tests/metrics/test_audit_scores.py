"""The published numbers of OpenUnlearning's score, to the digits that are published."""

import math

import pytest

from dipo_pl.errors import InputError
from dipo_pl.metrics.audit_scores import (
    membership_distance,
    membership_score,
    memorization_score,
    overall_score,
    privacy_score,
    utility_score,
)
from dipo_pl.metrics.truth_ratio import truth_ratio_knowledge


@pytest.mark.parametrize(("kept", "score"), [
    # The target, and the model that never knew.
    ((0.3208, 0.0319, 0.8952, 0.3178), 0.1033),
    ((0.9410, 0.4099, 0.9449, 0.4329), 0.5822),
])  # fmt: skip
def test_memorization_at_its_published_values(kept, score):
    assert memorization_score(*(1 - each for each in kept)) == pytest.approx(score, abs=5e-5)


def test_a_published_model():
    assert privacy_score(0.8642, 0.8319) == pytest.approx(0.8477, abs=5e-5)
    assert overall_score(0.604, privacy_score(0.8642, 0.8319), 0.955) == pytest.approx(0.773, abs=5e-4)


def test_any_part_at_nothing_is_nothing():
    assert memorization_score(0, 1, 0, 0) == 0
    assert overall_score(1, 0, 1) == 0
    assert privacy_score(1, 0) == 0
    assert memorization_score(0, 0, 0, 0) == overall_score(1, 1, 1) == membership_score(1, 1, 1, 1) == 1


def test_membership_worked_by_hand():
    assert membership_distance(0.5, 0.5) == 1
    # As far above as below.
    assert membership_distance(0.4, 0.5) == membership_distance(0.6, 0.5) == pytest.approx(0.8)
    assert membership_distance(1.0, 0.4) == membership_distance(0.9, 0.4) == 0
    # 4 / (1 + 2 + 4 + 1)
    assert membership_score(1, 0.5, 0.25, 1) == 0.5


def test_utility_worked_by_hand():
    assert utility_score(0.3, 0.6) == 0.5
    assert utility_score(0.7, 0.6) == 1
    # H(0.5, 1) = 2/3 of H(1, 1).
    assert utility_score(0.5, 1.0, 1.0, 1.0) == pytest.approx(2 / 3)
    assert utility_score(0.0, 0.6, 0.9, 0.9) == 0


def test_knowledge_matches_probabilities():
    log_ratio = [0.0, math.log(3), -math.log(4), 800.0, -800.0]
    assert truth_ratio_knowledge(log_ratio).tolist() == pytest.approx([1 / 2, 1 / 4, 4 / 5, 0, 1])


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda: memorization_score(1.2, 0, 0, 0),
            r"extraction_strength must be a share in \[0, 1\] \(got 1.2\)",
        ),
        (lambda: memorization_score(0, -1, 0, 0), "exact_memorization must be a share"),
        (lambda: memorization_score(0, 0, math.nan, 0), "paraphrased_probability must be a share"),
        (lambda: memorization_score(0, 0, 0, 2), "truth_ratio must be a share"),
        (lambda: membership_distance(1.1, 0.5), "auc must be a share"),
        (lambda: membership_distance(0.5, 0.0), r"retain_auc must be a share in \(0, 1\] \(got 0.0\)"),
        (lambda: membership_score(1, 1, 2, 1), "min_k must be a share"),
        (lambda: privacy_score(0.5, 1.5), "depth must be a share"),
        (lambda: utility_score(0.5, 0.0), r"target_utility must be a share in \(0, 1\] \(got 0.0\)"),
        (lambda: utility_score(0.5, 0.5, 0.5, 0.0), "target_fluency must be a share"),
        (lambda: utility_score(0.5, 0.5, 0.5), r"must be given together \(got 0.5 and None\)"),
        (lambda: utility_score(2, 0.5), "model_utility must be a share"),
        (lambda: overall_score(0.5, 0.5, math.inf), "utility must be a share"),
    ],
)
def test_names_what_it_refuses(call, line):
    with pytest.raises(InputError, match=line):
        call()
