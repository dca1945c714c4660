"""Selection rules on hand-written metrics: scores, ends, and what they lack."""

import math
import re

import pytest

from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.callbacks.selection_rules import (
    LOST,
    BestForgetQuality,
    FirstForgotten,
    LowestForgetProbability,
    NearestToUnseen,
)
from dipo_pl.errors import InputError
from dipo_pl.evaluation.verdict_rules import Thresholds
from dipo_pl.metrics.result import EvaluationResult, SetResult

TARGET = {"step": 0, "model_utility": 0.8, "forget_rouge_l_recall": 1.0, "forget_quality_log10_p": -9.0}
RETAIN = {"forget_rouge_l_recall": 0.4}
UNMEASURED = {"forget_probability": 0.1}


def quality(log10_p, utility):
    return {"forget_quality_log10_p": log10_p, "model_utility": utility}


def test_best_forget_quality():
    rule = BestForgetQuality(utility_share=0.9, patience=2)
    scores = [
        rule.score(quality(*each), TARGET, RETAIN) for each in ((-9, 0.8), (-1, 0.71), (-2, 0.73), (0, 0.4))
    ]
    lost = [-1e6 - (0.9 - 0.71 / 0.8), -1e6 - 0.4]
    assert scores == [-9, pytest.approx(lost[0], abs=1e-6), -2, pytest.approx(lost[1], abs=1e-6)]
    assert rule.score(UNMEASURED, TARGET, RETAIN) is None
    for scores, ends in [((-3,), 0), ((-3, -4), 0), ((-3, -4, -5), 1), ((-3, -4, -2), 0), ((-3, -3, -3), 1)]:
        assert bool(rule.ends(scores)) == bool(ends)


def test_first_forgotten():
    rule = FirstForgotten()
    scores = [rule.score({"forget_rouge_l_recall": each}, TARGET, RETAIN) for each in (0.9, 0.41, 0.4, 0.1)]
    assert scores == [pytest.approx(-0.5), pytest.approx(-0.01), 0.0, 0.0]
    assert [bool(rule.ends(scores[:count])) for count in (1, 2, 3)] == [False, False, True]
    assert rule.score(UNMEASURED, TARGET, RETAIN) is None


KNOWING = {"step": 0, "forget_probability": 0.9, "model_utility": 0.8, "retain_probability": 0.9}


def found(forget, utility):
    return {"forget_probability": forget, "model_utility": utility}


@pytest.mark.parametrize(("metrics", "target", "retain", "score"), [
    (found(0.4, 0.8), {}, None, -0.4),
    (found(0.4, 0.8), {"holdout_probability": 0.1}, None, -0.3),
    (found(0.4, 0.8), {"holdout_probability": 0.1}, {"forget_probability": 0.3}, -0.1),
    # Below what a model has that never saw the rows, nothing is gained.
    (found(0.05, 0.8), {"holdout_probability": 0.1}, None, 0.0),
    (found(0.05, 0.7), {"holdout_probability": 0.1}, None, -1e6 - (0.95 - 0.875)),
    # Answers were not generated: utility is P(retain), if it was measured.
    ({"forget_probability": 0.4, "retain_probability": 0.9}, {}, None, -0.4),
    ({"forget_probability": 0.4, "retain_probability": 0.45}, {}, None, -1e6 - (0.95 - 0.5)),
    ({"forget_probability": 0.4}, {}, None, None),
    ({"forget_probability": 0.4, "retain_probability": 0.45}, {"model_utility": 0.0}, None, -1e6 - (0.95 - 0.5)),
    (found(0.4, 0.0), {"model_utility": 0.0, "retain_probability": 0.0}, None, -0.4),  # nothing to lose
])  # fmt: skip
def test_lowest_forget_probability(metrics, target, retain, score):
    given = LowestForgetProbability().score(metrics, KNOWING | target, retain)
    assert given == (None if score is None else pytest.approx(score))


@pytest.mark.parametrize(("scores", "end"), [
    ([-0.8, -0.5], None),
    ([-0.8, 0.0], "P(forget) is that of a model that never saw the rows"),
    ([-0.5, -0.5, -0.6], "forgetting did not go on in the last 2 evaluations"),
    ([-0.5, -0.6, -0.4], None),
    ([-0.5, -1e6 - 0.2, -1e6 - 0.3], "utility was lost in the last 2 evaluations"),
    ([-0.5, -1e6 - 0.3, -1e6 - 0.2], None),  # utility comes back
    ([-1e6 - 0.2, -1e6 - 0.3], None),
    ([-1e6 - 0.2, -1e6 - 0.3, -1e6 - 0.4], "utility was lost in the last 2 evaluations"),
    ([], None),
])  # fmt: skip
def test_lowest_forget_probability_ends(scores, end):
    assert LowestForgetProbability(patience=2).ends(scores) == end


UNSEEN = {"holdout_probability": 0.1, "forget_extraction_strength": 0.6, "holdout_extraction_strength": 0.1}


@pytest.mark.parametrize(("metrics", "target", "retain", "score"), [
    # A share of 0.2 of the way from 0.9 to the holdout's 0.1 may be left, which is one unit.
    (found(0.5, 0.8), {"holdout_probability": 0.1}, None, -0.5 / 0.2),
    (found(0.26, 0.8), {"holdout_probability": 0.1}, None, -1.0),
    (found(0.05, 0.8), {"holdout_probability": 0.1}, None, 0.0),
    # Probability is gone, of extraction strength half is left: 1 plus half of 2.5 - 1.
    (found(0.1, 0.8) | {"forget_extraction_strength": 0.35}, UNSEEN, None, -1.75),
    # All are met: the one that is forgotten least counts.
    (found(0.1, 0.8) | {"forget_extraction_strength": 0.15}, UNSEEN, None, -0.5),
    # log 0.0025 / log 0.05 = 2, beside a probability that is gone; p = 0.2236 is half of the way to the threshold.
    (found(0.1, 0.8) | {"forget_quality_log10_p": -2.60206}, {"holdout_probability": 0.1}, None, -1.5),
    (found(0.1, 0.8) | {"forget_quality_log10_p": -0.650515}, {"holdout_probability": 0.1}, None, -0.5),
    # A retain-only model counts before a holdout, and 0 where there is neither.
    (found(0.5, 0.8), {"holdout_probability": 0.1}, {"forget_probability": 0.5}, 0.0),
    (found(0.45, 0.8), {}, None, -0.5 / 0.2),
    # Erased too far: the rows are told from unseen ones by it.
    (found(0.0, 0.8) | {"membership_min_k_auc": 0.2}, {"holdout_probability": 0.1}, None, -2.0),
    (found(0.0, 0.8) | {"membership_min_k_auc": 0.45}, {"holdout_probability": 0.1}, None, -0.5),
    # Utility is lost, or was not measured now; nothing was known.
    (found(0.1, 0.4), {"holdout_probability": 0.1}, None, -1e6 - 0.45),
    ({"forget_probability": 0.1}, {}, None, None),
    (found(0.1, 0.8), {"forget_probability": 0.1, "holdout_probability": 0.1}, None, 0.0),
])  # fmt: skip
def test_nearest_to_unseen(metrics, target, retain, score):
    given = NearestToUnseen().score(metrics, KNOWING | target, retain)
    assert given == (None if score is None else pytest.approx(score))


@pytest.mark.parametrize(("rows", "auc", "score"), [
    # The verdict's bound: up to twice the standard error, 2 sqrt(41 / 4800) of 20 rows each.
    (20, 0.65, -0.15 / 0.18484),
    (20, 0.8, -1 - (0.3 / 0.18484 - 1) / 2),
    # Of 10 rows each the error is larger.
    (10, 0.7, -0.2 / 0.26458),
    (10, 1.0, -1 - (0.5 / 0.26458 - 1) / 2),
])  # fmt: skip
def test_nearest_to_unseen_does_not_follow_the_noise_of_few_rows(rows, auc, score):
    rule = NearestToUnseen()
    rule.rows = {"forget": rows, "holdout": rows}
    metrics = found(0.1, 0.8) | {"membership_min_k_auc": auc}
    assert rule.score(metrics, KNOWING | {"holdout_probability": 0.1}, None) == pytest.approx(score, rel=1e-4)


def test_nearest_to_unseen_has_the_verdicts_evidence_and_thresholds():
    rule = NearestToUnseen()
    # Without other evidence than wrong answers, of the way from 0.9 to their 0.1.
    rule.wrong_answers = {"forget": 0.1}
    assert rule.score(found(0.26, 0.8), KNOWING, None) == pytest.approx(-1)
    rule.thresholds = Thresholds(removed=0.9)
    assert rule.score(found(0.26, 0.8), KNOWING, None) == pytest.approx(-2)
    rule.thresholds = Thresholds(removed=1.0)
    assert rule.score(found(0.11, 0.8), KNOWING, None) < -1
    assert rule.score(found(0.1, 0.8), KNOWING, None) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("rule", "score"), [(LowestForgetProbability(), -0.7), (NearestToUnseen(), -0.7 / 0.8 / 0.2)]
)
def test_the_request_that_is_forgotten_least_decides(rule, score):
    rule.forgotten = ("request_1", "request_2")
    target = KNOWING | {
        "holdout_probability": 0.1,
        "request_1_probability": 0.9,
        "request_2_probability": 0.9,
    }
    now = found(0.45, 0.8) | {"request_1_probability": 0.8, "request_2_probability": 0.1}
    assert rule.score(now, target, None) == pytest.approx(score)


def test_an_evaluation_without_answers_is_scored_by_the_rest():
    target = KNOWING | {
        "forget_rouge_l_recall": 0.9,
        "holdout_rouge_l_recall": 0.2,
        "holdout_probability": 0.1,
    }
    rule = NearestToUnseen()
    assert rule.score({"forget_probability": 0.1, "retain_probability": 0.9}, target, None) == 0
    assert rule.score({"forget_probability": 0.1, "retain_probability": 0.8}, target, None) < LOST
    assert rule.score({"forget_probability": 0.1}, target, None) is None
    # No measure was taken of what the target knows.
    unlike = target | {"forget_probability": 0.12, "holdout_probability": 0.11}
    assert rule.score({"forget_probability": 0.1, "retain_probability": 0.9}, unlike, None) is None
    assert rule.score(found(0.1, 0.8) | {"forget_rouge_l_recall": 0.2}, target, None) == 0
    # Half of the way is left, 1.5 units more than may be.
    still_said = {"forget_rouge_l_recall": 0.55, "retain_probability": 0.1}
    assert rule.score(found(0.1, 0.8) | still_said, target, None) == pytest.approx(-1.75)


def test_lost_utility_is_worse_than_any_deviation():
    rule = NearestToUnseen()
    for thresholds in (
        Thresholds(removed=1.0),
        Thresholds(forget_quality=1.0),
        Thresholds(forget_quality=1 - 1e-9),
    ):
        rule.thresholds = thresholds
        half = found(0.5, 0.8) | {"forget_quality_log10_p": -9.0}
        lost = found(0.0, 0.1) | {"forget_quality_log10_p": 0.0}
        target = KNOWING | {"holdout_probability": 0.1}
        assert rule.score(half, target, None) > rule.score(lost, target, None)
        assert rule.score(half, target, None) < -1


def test_nearest_to_unseen_can_ask_for_forget_quality_first():
    plain, asking = NearestToUnseen(), NearestToUnseen(forget_quality=0.05)
    target = KNOWING | {"holdout_probability": 0.1, "membership_min_k_auc": 1.0}

    def scores(quality, area, utility=0.8):
        measured = {"forget_quality": quality, "forget_quality_log10_p": math.log10(quality)}
        metrics = found(0.1, utility) | measured | {"membership_min_k_auc": area}
        return [rule.score(metrics, target, None) for rule in (plain, asking)]

    near, over = scores(0.04, 0.5), scores(0.06, 0.1)
    assert near[0] > over[0]
    assert near[1] < over[1] < -1
    # The bound itself is enough, and among those with it, and among those without it, the nearest comes first.
    assert scores(0.05, 0.5) == [pytest.approx(-1)] * 2
    assert over[1] < scores(0.06, 0.2)[1]
    assert scores(0.01, 0.5)[1] < near[1]
    # Utility comes before it, and where it is not measured nothing is asked for.
    assert scores(0.9, 0.5, utility=0.1)[1] < near[1]
    assert asking.score(found(0.1, 0.8), KNOWING | {"holdout_probability": 0.1}, None) == 0


def test_nearest_to_unseen_ends():
    rule = NearestToUnseen(patience=2)
    assert rule.ends([-3.0, -1.0]) == "the forget rows are like rows that the model never saw"
    assert rule.ends([-3.0, -1.1]) is None
    assert rule.ends([-2.0, -2.5, -3.0]) == "forgetting did not go on in the last 2 evaluations"


def test_metrics_that_a_rule_needs():
    for target, lacks in [
        ({"retain_probability": 1}, r"P\(forget\)"),
        ({"forget_probability": 1}, "a utility"),
    ]:
        with pytest.raises(
            InputError, match=f"needs {lacks}, which is not measured: .* --selection.rule null"
        ):
            LowestForgetProbability().score(target, target, None)
    with pytest.raises(InputError, match="needs Model Utility, which is not measured"):
        BestForgetQuality().score(quality(-1, 0.8), {"step": 0}, RETAIN)
    with pytest.raises(
        InputError, match=r"needs Forget Quality, which is not measured: .* \(perturbed_answer"
    ):
        BestForgetQuality().score(UNMEASURED, {"step": 0, "model_utility": 0.8}, RETAIN)
    with pytest.raises(
        InputError, match="needs 'forget_knowledge', which is not in the evaluation before training"
    ):
        FirstForgotten("forget_knowledge").score(TARGET, TARGET, RETAIN)


@pytest.mark.parametrize(("rule", "line"), [
    (BestForgetQuality(), "needs Forget Quality, which is not measured: the forget rows lack wrong answers"),
    # It was measured with other holdout rows.
    (FirstForgotten("membership_min_k_auc"), "'membership_min_k_auc', which is not in the retain-only model's result on"),
])  # fmt: skip
def test_a_retain_result_that_a_rule_cannot_use(rule, line):
    evaluation = ForgetQuality(retain_result="some")
    forget = SetResult({}, [{"log_truth_ratio": 0.1}, {}])
    evaluation.retain = EvaluationResult("dipo_pl", {"membership_min_k_auc": 0.5}, {"forget": forget})
    evaluation.retain_metrics = {}
    with pytest.raises(InputError, match=re.escape(line)):
        rule.check(evaluation)
