import math
import re

import pytest

from dipo_pl.attacks.base import Outcome
from dipo_pl.attacks.intervals import Intervals
from dipo_pl.attacks.judgement import Judgement, judge, not_tried, overall
from dipo_pl.attacks.score import scores
from dipo_pl.errors import InputError


def judged(target, unlearned, retain_only, tolerance=0.05, removed=0.5):
    named = {"target": target, "unlearned": unlearned, "retain_only": retain_only}
    values = {name: each for name, each in named.items() if each is not None}
    return judge(Outcome("how much", values, {}), tolerance, removed)


@pytest.mark.parametrize(("values", "status"), [
    ((0.9, 0.14, 0.1), "indistinguishable"),
    ((0.9, 0.06, 0.1), "indistinguishable"),
    ((0.9, 0.16, 0.1), "distinguishable"),
    # Forgotten too hard.
    ((0.9, 0.0, 0.1), "distinguishable"),
    # Less than half of the way from 0.9 to 0.1, and just half of it.
    ((0.9, 0.51, 0.1), "not_forgotten"),
    ((0.9, 0.5, 0.1), "distinguishable"),
    ((0.9, 0.95, 0.1), "not_forgotten"),
    # The target is no different from the model that never knew: the attack shows nothing.
    ((0.12, 0.11, 0.1), "not_tried"),
    ((0.12, 0.4, 0.1), "distinguishable"),
    ((None, 0.12, 0.1), "indistinguishable"),
    ((None, 0.4, 0.1), "distinguishable"),
    # Without a model that never knew.
    ((0.9, 0.6, None), "not_forgotten"),
    ((0.9, 0.2, None), "not_tried"),
    ((None, 0.9, None), "not_tried"),
    ((0.04, 0.04, None), "not_tried"),
])  # fmt: skip
def test_an_attack_is_judged_by_its_distances(values, status):
    assert judged(*values).status == status


@pytest.mark.parametrize(("values", "status"), [
    # Half of the way from 0.95 to chance, an AUC of 0.5, is 0.725.
    ((0.95, 0.5, None), "not_tried"),
    ((0.95, 0.7, None), "not_tried"),
    ((0.95, 0.76, None), "not_forgotten"),
])  # fmt: skip
def test_without_a_retain_only_model_membership_is_compared_with_chance(values, status):
    named = dict(zip(("target", "unlearned"), values, strict=False))
    assert judge(Outcome("AUC", named, {}, floor=0.5), 0.05, 0.5).status == status


@pytest.mark.parametrize(("distance", "gone", "status"), [
    # Values are 0.9, 0.3 and 0.2: a distance of 0.1, 0.86 of the way gone; the tolerance is 0.05, 0.8 must be gone.
    ([0.06, 0.14], [0.8, 0.9], "distinguishable"),
    ([0.06, 0.14], [0.6, 0.79], "not_forgotten"),
    ([0.06, 0.14], [0.6, 0.81], "distinguishable"),
    ([-0.05, 0.05], [0.6, 0.7], "indistinguishable"),
    ([-0.05, 0.06], [0.6, 0.7], "cannot_tell"),
    ([-0.06, 0.05], [0.6, 0.7], "cannot_tell"),
    ([0.05, 0.3], [0.6, 0.7], "cannot_tell"),
    ([-0.3, -0.06], [0.6, 0.7], "distinguishable"),
    ([-0.3, 0.3], [0.6, 0.7], "cannot_tell"),
])  # fmt: skip
def test_it_takes_rows_to_tell(distance, gone, status):
    values = {"target": 0.9, "unlearned": 0.3, "retain_only": 0.2}
    found = judge(Outcome("P", values, {}, intervals=Intervals([0, 1], distance, gone, 40)), 0.05, 0.8)
    assert found.status == status
    assert (found.settle != "") == (status == "cannot_tell")
    assert f"distance 0.1 [{distance[0]:.3g}, {distance[1]:.3g}], at most 0.05" in found.reason


@pytest.mark.parametrize("rows", [0, 1])
def test_fewer_than_two_rows_tell_nothing(rows):
    values = {"target": 0.9, "unlearned": 0.9, "retain_only": 0.9}
    few = Intervals(None, None, None, rows)
    found = judge(Outcome("P", values, {}, intervals=few), 0.05, 0.5)
    assert (found.status, found.settle) == ("cannot_tell", f"two rows or more (got {rows})")
    del values["retain_only"]
    assert judge(Outcome("P", values, {}, intervals=few), 0.05, 0.5).status == "not_tried"


@pytest.mark.parametrize(("value", "distance", "named"), [
    (math.nan, None, "hint: the unlearned model is not finite (nan)"),
    (math.inf, None, "hint: the unlearned model is not finite (inf)"),
    (0.1, [-math.inf, 0.1], "hint: the interval of the distance is not finite (-inf)"),
])  # fmt: skip
def test_numbers_that_are_not_finite_are_refused(value, distance, named):
    outcome = Outcome("P", {"unlearned": value}, {}, intervals=Intervals(None, distance, None, 4))
    with pytest.raises(InputError, match=re.escape(named)):
        outcome.check("hint")
    Outcome("P", {"unlearned": 0.1}, {}, intervals=Intervals(None, [0.1, 0.2], None, 4)).check("hint")


def test_where_there_was_nothing_to_forget_few_rows_do_not_matter():
    values = {"target": 0.22, "unlearned": 0.21, "retain_only": 0.2}
    for distance, status in (([-0.3, 0.3], "not_tried"), ([-0.3, -0.2], "distinguishable")):
        found = judge(Outcome("P", values, {}, intervals=Intervals([0, 1], distance, None, 5)), 0.05, 0.5)
        assert found.status == status


def test_without_a_model_that_never_knew_all_of_what_may_be_gone_counts():
    values = {"target": 0.9, "unlearned": 0.6}
    for gone, status in (([0.1, 0.4], "not_forgotten"), ([0.1, 0.6], "not_tried")):
        outcome = Outcome("P", values, {}, intervals=Intervals([0, 1], None, gone, 40))
        assert judge(outcome, 0.05, 0.5).status == status


def test_how_many_rows_would_settle_it():
    """A half width of 0.1 on 40 rows is 0.05 on four times as many, and the tolerance is 0.05 away."""
    values = {"unlearned": 0.3, "retain_only": 0.2}
    open_ended = judge(Outcome("P", values, {}, intervals=Intervals([0, 1], [0.0, 0.2], None, 40)), 0.05, 0.5)
    assert open_ended.settle == "about 160 rows (these are 40)"
    values["unlearned"] = 0.25
    at_the_edge = judge(
        Outcome("P", values, {}, intervals=Intervals([0, 1], [0.0, 0.1], None, 40)), 0.05, 0.5
    )
    assert at_the_edge.settle == "another tolerance"


@pytest.mark.parametrize(("distance", "interval", "said"), [
    # A skewed interval: its long side crosses no bound, the short one does, 1.1 times as far as the bound.
    (-0.1, (-0.4, -0.045), "about 48 rows (these are 40)"),
    (0.1, (0.045, 0.4), "about 48 rows (these are 40)"),
    # The other side alone, and both, of which one is 6 times as far as its bound.
    (0.03, (0.02, 0.051), "about 44 rows (these are 40)"),
    (-0.03, (-0.15, 0.11), "about 1400 rows (these are 40)"),
    # An estimate that rounds to the rows that there are is one more at least.
    (0.1, (0.0499, 0.4), "about 41 rows (these are 40)"),
])  # fmt: skip
def test_more_rows_than_there_are_would_settle_it(distance, interval, said):
    values = {"unlearned": 0.5 + distance, "retain_only": 0.5}
    found = judge(Outcome("P", values, {}, intervals=Intervals([0, 1], list(interval), None, 40)), 0.05, 0.5)
    assert found.settle == said


def test_thresholds_are_the_configs():
    assert judged(0.9, 0.3, 0.1, removed=0.8).status == "not_forgotten"
    assert judged(0.9, 0.3, 0.1, tolerance=0.3).status == "indistinguishable"


def test_reasons_show_the_figures():
    assert judged(0.9, 0.4, 0.1).reason == "how much: target 0.9, unlearned model 0.4, retain-only model 0.1"
    assert "cannot tell the target from the retain-only model either" in judged(0.1, 0.1, 0.1).reason
    assert "it takes a retain-only model" in judged(0.9, 0.2, None).reason


def test_the_worst_attack_decides():
    like, told, known = (
        Judgement(each, "") for each in ("indistinguishable", "distinguishable", "not_forgotten")
    )
    missing = not_tried("it takes a holdout")
    assert overall({"a": like, "b": told, "c": known, "d": known}) == Judgement("not_forgotten", "by c, d")
    assert overall({"a": like, "b": told, "c": missing}) == Judgement("distinguishable", "by b")
    assert overall({"a": like, "b": like, "c": missing}) == Judgement(
        "indistinguishable", "by a, b; 1 not tried"
    )
    few = Judgement("cannot_tell", "", "about 160 rows")
    assert overall({"a": like, "b": few, "c": not_tried("it takes x", "x")}) == Judgement(
        "cannot_tell", "by b", "b: about 160 rows; c: x"
    )
    assert overall({"a": told, "b": few}) == Judgement("distinguishable", "by a", "b: about 160 rows")
    assert overall({"a": like}) == Judgement("indistinguishable", "by a")
    assert overall({"a": missing}).status == "not_tried"


def test_scores_are_made_of_what_is_known():
    metrics = {
        "memorization_score": 0.604, "privacy_mia": 0.8642, "unlearning_depth": 0.8319,
        "model_utility": 0.5, "target_model_utility": 0.5, "fluency": 0.9, "target_fluency": 0.9,
    }  # fmt: skip
    found = scores(metrics)
    assert found["privacy_score"] == pytest.approx(0.8477, abs=5e-5)
    assert found["utility_score"] == 1
    assert found["overall_score"] == pytest.approx(3 / (1 / 0.604 + 1 / found["privacy_score"] + 1))
    assert found["overall_score_mia"] == pytest.approx(3 / (1 / 0.604 + 1 / 0.8642 + 1))
    less = scores({key: value for key, value in metrics.items() if key != "unlearning_depth"})
    assert less.keys() == {"utility_score", "overall_score_mia", "target_utility_score"}
    less = scores(
        {key: value for key, value in metrics.items() if "fluency" not in key} | {"model_utility": 0.25}
    )
    assert less["utility_score"] == 0.5
    assert scores({**metrics, "target_model_utility": 0.0}).keys() == {
        "privacy_score",
        "retain_only_privacy_score",
    }
    assert scores({}) == {}


def test_the_models_beside_it_have_scores_too():
    metrics = {
        "privacy_mia": 0.8, "target_privacy_mia": 0.2, "unlearning_depth": 0.5, "target_memorization_score": 0.1,
        "retain_only_memorization_score": 0.6, "model_utility": 0.5, "target_model_utility": 0.8,
        "retain_only_model_utility": 0.4,
    }  # fmt: skip
    found = scores(metrics)
    # A model that knows everything in all layers, and one that is compared with itself.
    assert (found["target_privacy_score"], found["retain_only_privacy_score"]) == (0, 1)
    assert found["target_overall_score"] == 0
    assert found["target_overall_score_mia"] == pytest.approx(3 / (1 / 0.1 + 1 / 0.2 + 1))
    assert found["retain_only_utility_score"] == 0.5
    assert found["retain_only_overall_score"] == pytest.approx(3 / (1 / 0.6 + 1 + 1 / 0.5))
