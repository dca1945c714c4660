"""The verdict's decision table, its baselines, and each rule at its threshold, on hand-written metrics."""

import math
import random
from dataclasses import replace

import pytest

from dipo_pl.evaluation.deviation import deviation
from dipo_pl.evaluation.membership_rule import area_noise, membership
from dipo_pl.evaluation.verdict import judge
from dipo_pl.evaluation.verdict_notes import PROBES
from dipo_pl.evaluation.verdict_rules import (
    Evidence,
    Thresholds,
    baseline,
    forget_quality,
    kept_utility,
    measured_again,
    metric_thresholds,
)

TARGET = {
    "step": 0, "forget_probability": 0.9, "forget_rouge_l_recall": 0.8, "forget_extraction_strength": 0.5,
    "holdout_probability": 0.1, "holdout_rouge_l_recall": 0.2, "holdout_extraction_strength": 0.0,
    "membership_min_k_auc": 1.0, "model_utility": 0.6, "retain_probability": 0.8,
    "retain_repetition": 0.0, "retain_word_entropy": 2.0,
}  # fmt: skip
# All of it gone, nothing else changed.
FORGOTTEN = TARGET | {
    "step": 9, "forget_probability": 0.1, "forget_rouge_l_recall": 0.2, "forget_extraction_strength": 0.0,
    "membership_min_k_auc": 0.5,
}  # fmt: skip
ROWS = {"forget": 100, "holdout": 100}
RETAIN = {
    "forget_probability": 0.3, "forget_rouge_l_recall": 0.4, "forget_extraction_strength": 0.1, "membership_min_k_auc": 0.6,
}  # fmt: skip


def verdict(changes=(), target=TARGET, now=FORGOTTEN, **more):
    """The verdict where `changes` (None: not measured) were found instead of FORGOTTEN's values."""
    found = {name: value for name, value in (now | dict(changes)).items() if value is not None}
    return judge(Evidence(target, found, rows=ROWS, **more), Thresholds())


def without(metrics, *names):
    return {name: value for name, value in metrics.items() if not name.endswith(names)}


@pytest.mark.parametrize(("changes", "name", "statuses"), [
    ({}, "forgotten", {"forget_probability": "met", "forget_rouge": "met", "extraction_strength": "met"}),
    ({}, "forgotten", {"membership": "met", "utility": "met", "fluency": "met", "collapse": "met"}),
    # P(forget): 0.8 of the way from 0.9 to 0.1 is at 0.26, half of it at 0.5.
    ({"forget_probability": 0.259}, "forgotten", {"forget_probability": "met"}),
    ({"forget_probability": 0.261}, "partly", {"forget_probability": "partly"}),
    ({"forget_probability": 0.499}, "partly", {"forget_probability": "partly"}),
    ({"forget_probability": 0.501}, "not_forgotten", {"forget_probability": "missed"}),
    ({"forget_probability": 0.95}, "not_forgotten", {"forget_probability": "missed"}),
    # What the model says counts as much as how probable it is.
    ({"forget_rouge_l_recall": 0.45}, "partly", {"forget_rouge": "partly"}),
    ({"forget_rouge_l_recall": 0.7}, "not_forgotten", {"forget_rouge": "missed"}),
    ({"forget_extraction_strength": 0.4}, "not_forgotten", {"extraction_strength": "missed"}),
    # Still recognized, or recognized by its absence.
    ({"membership_min_k_auc": 0.59}, "forgotten", {"membership": "met"}),
    ({"membership_min_k_auc": 0.65}, "partly", {"membership": "partly"}),
    ({"membership_min_k_auc": 0.9}, "partly", {"membership": "missed"}),
    ({"membership_min_k_auc": 0.1}, "partly", {"membership": "missed"}),
    ({"membership_min_k_auc": None}, "forgotten", {"membership": "not_tested"}),
    ({"forget_quality": 0.06}, "forgotten", {"forget_quality": "met"}),
    ({"forget_quality": 0.04}, "partly", {"forget_quality": "missed"}),
    # Forgotten at a cost.
    ({"model_utility": 0.571}, "forgotten", {"utility": "met"}),
    ({"model_utility": 0.569}, "partly", {"utility": "partly"}),
    ({"model_utility": 0.29}, "partly", {"utility": "missed"}),
    ({"retain_repetition": 0.11}, "partly", {"fluency": "missed"}),
    ({"retain_word_entropy": 1.59}, "partly", {"fluency": "missed"}),
    # A cost does not excuse what is still known.
    ({"forget_probability": 0.8, "model_utility": 0.3}, "not_forgotten", {"utility": "partly"}),
    # What was not measured.
    ({"forget_probability": None}, "cannot_tell", {}),
    ({"model_utility": None}, "cannot_tell", {"utility": "not_tested"}),
    ({"retain_repetition": None}, "cannot_tell", {"fluency": "not_tested"}),
    ({"forget_rouge_l_recall": None}, "cannot_tell", {"forget_rouge": "not_tested"}),
    ({"forget_rouge_l_recall": None, "forget_probability": 0.8}, "not_forgotten", {}),
    ({"forget_rouge_l_recall": None, "model_utility": 0.3}, "partly", {}),
])  # fmt: skip
def test_decision_table(changes, name, statuses):
    found = verdict(changes)
    assert found.name == name
    assert {each.rule: each.status for each in found.reasons}.items() >= statuses.items()
    assert {each.rule for each in found.reasons if each.status == "not_tested"} >= PROBES.keys()


@pytest.mark.parametrize("changes", [{}, {"forget_probability": 0.9}])
def test_a_collapsed_model_shows_no_forgetting(changes):
    found = verdict(changes, collapse=["utility fell"])
    assert found.name == "cannot_tell"
    assert next(each for each in found.reasons if each.rule == "collapse").text == "utility fell"


def test_warnings_are_reported_and_do_not_decide():
    found = verdict(warnings=["utility oscillates", "step 3 was better"])
    assert found.name == "forgotten"
    assert [each.text for each in found.reasons if each.rule == "warnings"] == [
        "utility oscillates",
        "step 3 was better",
    ]


@pytest.mark.parametrize(("areas", "retain", "status", "said"), [
    ({"loss": 0.6, "zlib": 0.4}, None, "met", "loss, the worst of 3 attacks, is 0.60, 0.50 is chance (at most 0.10"),
    ({"loss": 0.1}, None, "missed", "loss, the worst of 2 attacks, is 0.10, 0.50 is chance, the rows look erased"),
    ({"min_k_plus_plus": 0.64, "zlib": 0.45}, None, "partly", "Min-K%++, the worst of 3 attacks, is 0.64, 0.50 is chance"),
    # With a retain-only model its own area counts, and for an attack that it lacks 0.5.
    ({"loss": 0.1, "zlib": 0.2, "min_k_plus_plus": 0.55}, {"membership_loss_auc": 0.15}, "missed",
     "zlib, the worst of 4 attacks, is 0.20, 0.50 is chance, the rows look erased"),
    ({"loss": 0.2, "zlib": 0.48}, {"membership_loss_auc": 0.15, "membership_zlib_auc": 0.56}, "met",
     "Min-K%, the worst of 3 attacks, is 0.50, 0.60 is a retain-only model's"),
])  # fmt: skip
def test_the_worst_attack_on_membership_decides(areas, retain, status, said):
    given = None if retain is None else RETAIN | retain
    found = verdict({f"membership_{name}_auc": area for name, area in areas.items()}, retain=given)
    assert found.name == ("forgotten" if status == "met" else "partly")
    (reason,) = (each for each in found.reasons if each.rule == "membership")
    assert reason.status == status
    assert reason.text.startswith(f"membership AUC of {said}")
    assert reason.evidence == ("holdout" if "chance" in said else "retain-only model")


def test_one_of_four_attacks_errs_as_rarely_as_a_single_one():
    """By chance alone: scores of 40 forget and 40 unseen rows, drawn from one distribution, by four attacks at a time."""
    draw = random.Random(0)
    evidence = Evidence({}, {}, rows={"forget": 40, "holdout": 40})
    assert area_noise(evidence) == pytest.approx(2 * math.sqrt(81 / 19200))
    errors = {1: 0, 4: 0}
    for _ in range(300):
        gaps = []
        for _ in range(4):
            seen, unseen = ([draw.random() for _ in range(40)] for _ in range(2))
            won = sum(other > each for each in seen for other in unseen)
            gaps.append(abs(won / 1600 - 0.5))
        for attacks in errors:
            errors[attacks] += max(gaps[:attacks]) > area_noise(evidence, attacks)
    # 4.6 % of the time, and never for four as it would be without the correction, 17 %.
    assert all(0.02 < each / 300 < 0.08 for each in errors.values())


@pytest.mark.parametrize("none", [{"target": {}}, {"now": {}}])
def test_without_evaluations_nothing_can_be_told(none):
    found = verdict(**none)
    assert (found.name, found.reasons[0].status) == ("cannot_tell", "not_tested")


@pytest.mark.parametrize(("target", "more", "expected"), [
    (TARGET, {"retain": RETAIN, "wrong_answers": {"forget": 0.2}}, (0.3, "retain-only model")),
    (TARGET, {"retain": {}, "wrong_answers": {"forget": 0.2}}, (0.1, "holdout")),
    (without(TARGET, "holdout_probability"), {"wrong_answers": {"forget": 0.2}}, (0.2, "wrong answers")),
    (without(TARGET, "holdout_probability"), {}, (None, "target")),
])  # fmt: skip
def test_the_best_evidence_comes_first(target, more, expected):
    assert baseline(Evidence(target, {}, **more), "forget", "probability") == expected


@pytest.mark.parametrize(("more", "now", "share"), [
    ({"retain": RETAIN}, 0.6, 0.5),  # of 0.9 to 0.3
    ({}, 0.5, 0.5),  # of 0.9 to 0.1
    ({"target": without(TARGET, "holdout_probability"), "wrong_answers": {"forget": 0.4}}, 0.65, 0.5),
    ({"target": without(TARGET, "holdout_probability")}, 0.45, 0.5),  # of all
])  # fmt: skip
def test_share_removed(more, now, share):
    reason = verdict({"forget_probability": now}, **more).reasons[0]
    assert (reason.rule, reason.value) == ("forget_probability", pytest.approx(share))
    assert f"from 0.9 to {now:.3g}: 50%" in reason.text


@pytest.mark.parametrize("target", [
    TARGET | {"holdout_probability": 0.82},  # less than a tenth of 0.9 apart
    TARGET | {"forget_probability": 0.04, "holdout_probability": 0.03},  # less than 0.02 apart
    TARGET | {"forget_probability": 0.1, "holdout_probability": 0.3},
    without(TARGET | {"forget_probability": 0.09}, "holdout_probability"),
])  # fmt: skip
def test_a_target_that_does_not_know_the_rows(target):
    found = verdict({"forget_probability": 0.01}, target=target)
    assert (found.name, found.reasons[0].status) == ("cannot_tell", "not_tested")
    assert "there was little to forget" in found.reasons[0].text


def test_a_measure_by_which_there_was_nothing_to_forget_does_not_count():
    assert (
        verdict({"forget_rouge_l_recall": 0.9}, target=TARGET | {"holdout_rouge_l_recall": 0.8}).name
        == "forgotten"
    )


@pytest.mark.parametrize(("rows", "auc", "status"), [
    (100, 0.59, "met"),
    (40, 0.62, "met"),  # within twice the standard error, 0.13
    (40, 0.64, "partly"),
    (10, 0.75, "not_tested"),  # twice the standard error is 0.26
    (10, 0.2, "partly"),
    (10, 1.0, "partly"),
    (20, 1.0, "missed"),
])  # fmt: skip
def test_membership_of_few_rows(rows, auc, status):
    now = FORGOTTEN | {"membership_min_k_auc": auc}
    assert membership(Evidence(TARGET, now, rows=dict.fromkeys(ROWS, rows)), Thresholds()).status == status


@pytest.mark.parametrize(("rows", "value", "status"), [
    # The lowest p-value is 2 / binom(2n, n): 1, 1/3, 0.1 and 0.029.
    (1, 1.0, "not_tested"),
    (3, 0.1, "not_tested"),
    (4, 2 / 70, "missed"),
    (4, 0.1, "met"),
    (0, 0.1, "met"),  # not known
    (100_000, 0.0, "missed"),
])  # fmt: skip
def test_forget_quality_of_few_rows(rows, value, status):
    evidence = Evidence(TARGET, FORGOTTEN | {"forget_quality": value}, RETAIN, rows={"forget": rows})
    assert forget_quality(evidence, Thresholds()).status == status
    target = replace(evidence, target=evidence.now)
    assert ("forget_quality" in metric_thresholds(target, Thresholds())) is (status != "not_tested")
    # A checkpoint is not chosen by it either.
    worse = replace(evidence, now=evidence.now | {"forget_quality_log10_p": -9.0})
    chosen_by = deviation(worse, Thresholds()) > deviation(evidence, Thresholds())
    assert chosen_by is (status != "not_tested")


def test_membership_is_compared_with_a_retain_only_model():
    evidence = Evidence(TARGET, FORGOTTEN | {"membership_min_k_auc": 0.69}, RETAIN, rows=ROWS)
    found = membership(evidence, Thresholds())
    assert (found.status, found.evidence, found.value) == ("met", "retain-only model", pytest.approx(0.09))


def test_utility_is_the_first_that_the_target_had():
    assert kept_utility(TARGET, FORGOTTEN) == ("Model Utility", 0.6, 0.6)
    weak = TARGET | {"model_utility": 0.05}
    assert kept_utility(weak, {"model_utility": 0.0, "retain_probability": 0.4}) == ("P(retain)", 0.8, 0.4)
    assert kept_utility(TARGET, {"retain_probability": 0.4}) is None
    assert kept_utility({"retain_probability": 0.09}, FORGOTTEN) is None
    now = {"retain_probability": 0.4}
    assert kept_utility(measured_again(TARGET, now), now) == ("P(retain)", 0.8, 0.4)


REQUESTS = {f"request_{place}_{name}": value for place in (1, 2) for name, value in
            {"probability": 0.9, "rouge_l_recall": 0.8}.items()}  # fmt: skip
BOTH = {f"request_{place}_{name}": value for place in (1, 2) for name, value in
        {"probability": 0.1, "rouge_l_recall": 0.2}.items()}  # fmt: skip


@pytest.mark.parametrize(("changes", "name", "statuses"), [
    ({}, "forgotten", {"forget_probability": "met", "forget_rouge": "met"}),
    # Whichever it is, the one that is forgotten least decides, by each measure.
    ({"request_1_probability": 0.9}, "not_forgotten", {"forget_probability": "missed", "forget_rouge": "met"}),
    ({"request_2_probability": 0.4}, "partly", {"forget_probability": "partly"}),
    ({"request_1_probability": 0.4, "request_2_rouge_l_recall": 0.8}, "not_forgotten",
     {"forget_probability": "partly", "forget_rouge": "missed"}),
    ({"request_1_rouge_l_recall": None}, "cannot_tell", {"forget_rouge": "not_tested"}),
])  # fmt: skip
def test_requests_that_are_forgotten_together_are_judged_one_by_one(changes, name, statuses):
    together = {"target": TARGET | REQUESTS, "forgotten": ("request_1", "request_2")}
    found = verdict(BOTH | changes, **together)
    assert found.name == name
    assert {each.rule: each.status for each in found.reasons}.items() >= statuses.items()
    if changes == {"request_1_probability": 0.9}:
        assert found.reasons[0].text.startswith(
            "P(forget) of request 1 went from 0.9 to 0.9: 0% of the way to the 0.1"
        )
        now = {key: each for key, each in (FORGOTTEN | BOTH | changes).items() if each is not None}
        evidence = Evidence(together["target"], now, forgotten=together["forgotten"])
        # All is left, of which a fifth may be: 1 plus the mean of 5 - 1, and of 0 by ROUGE and membership.
        assert deviation(evidence, Thresholds()) == pytest.approx(1 + 4 / 3)
        assert metric_thresholds(evidence, Thresholds())["request_1_probability"] == pytest.approx(0.26)


def test_a_request_of_which_nothing_was_known_does_not_count():
    target = TARGET | REQUESTS | {"request_1_probability": 0.1, "request_1_rouge_l_recall": 0.2}
    found = verdict(BOTH, target=target, forgotten=("request_1", "request_2"))
    assert found.name == "forgotten"
    assert found.reasons[0].text.startswith("P(forget) of request 2 went from 0.9 to 0.1")


@pytest.mark.parametrize(("before", "now", "more", "name", "said"), [
    (0.1, 0.3, {}, "partly", "P(request 1) rose from 0.1 to 0.3: rows of an earlier request are coming back"),
    (0.1, 0.115, {}, "forgotten", "P of no earlier request rose by more than 0.02"),
    # It was erased, and rises to what a model has that never saw the rows, the holdout's 0.1 or a retain-only model's.
    (0.0, 0.1, {}, "forgotten", "P of no earlier request rose by more than 0.02"),
    (0.0, 0.3, {"retain": RETAIN | {"request_1_probability": 0.29}}, "forgotten", "P of no earlier request rose"),
])  # fmt: skip
def test_an_earlier_request_that_comes_back_is_not_forgotten(before, now, more, name, said):
    target = TARGET | REQUESTS | {"request_1_probability": before}
    found = verdict(BOTH | {"request_1_probability": now}, target=target, forgotten=("request_2",), **more)
    assert found.name == name
    (reason,) = (each for each in found.reasons if each.rule == "earlier_requests")
    assert reason.text.startswith(said)


@pytest.mark.parametrize(("more", "told"), [({}, True), ({"world_facts": 20}, False)])
def test_utility_on_retain_rows_alone_is_told(more, told):
    rows = {"forget": 20, "retain": 20, "holdout": 20} | more
    found = judge(Evidence(TARGET, FORGOTTEN, rows=rows), Thresholds())
    assert found.name == "forgotten"
    assert ("other_knowledge" in {each.rule for each in found.reasons}) is told
