"""Metrics of sets made by hand: what conventions change, which sets they apply to, and values of several sets."""

import math

import pytest
from made import observed, result

from dipo_pl.errors import InputError
from dipo_pl.metrics import (
    Fluency,
    ForgetQuality,
    Knowledge,
    Membership,
    Memorization,
    ModelUtility,
    Probability,
    Rouge,
    TruthRatio,
    Verbatim,
)
from dipo_pl.metrics.base import all_values
from dipo_pl.metrics.membership import zlib
from dipo_pl.metrics.result import EvaluationResult, SetResult

FURTHER = [Memorization(), Membership(), Fluency(), Verbatim(), Knowledge()]


def values(metrics, sets, retain=None):
    """Return all values of sets given as {name: (rows, changes)}."""
    found = {name: result(metrics, name, *rows, **changes) for name, (rows, changes) in sets.items()}
    return all_values(found, metrics, retain)


@pytest.mark.parametrize(("convention", "epsilon"), [("dipo_pl", 0.0), ("open_unlearning", 1e-10)])
def test_epsilon_of_open_unlearning(convention, epsilon):
    """Where the correct answer has become as unlikely as the epsilon itself."""
    row = observed(22.0, 23.0, 24.0, 26.0)
    (found,) = result([TruthRatio()], "forget", row, convention=convention).rows
    assert found["log_truth_ratio"] == pytest.approx(-25.0 - math.log(math.exp(-23.0) + epsilon))
    (found,) = result([Probability()], "real_authors", row, convention=convention, options=True).rows
    total = sum(math.exp(-each) for each in (22.0, 24.0, 26.0)) + epsilon
    assert found["probability"] == pytest.approx(math.exp(-22.0) / total)


def test_a_set_of_options_needs_wrong_answers():
    with pytest.raises(InputError, match="the evaluation set 'real_authors' needs wrong answers"):
        result([Probability()], "real_authors", observed(1.0), options=True)


def test_arithmetic_truth_ratios_stay_in_log_space():
    row = observed(900.0, 1000.0, 990.0, 1010.0)
    (found,) = result([TruthRatio()], "forget", row, convention="arithmetic").rows
    assert found["log_truth_ratio"] == pytest.approx(1000 - 990 - math.log(2) + math.log1p(math.exp(-20)))


def test_truth_ratio_of_a_set():
    rows = [observed(1.0, 1.0, 2.0), observed(1.0, 3.0, 2.0)]
    found = {
        name: result([TruthRatio()], name, *rows).metrics["truth_ratio"] for name in ("forget", "retain")
    }
    assert found == pytest.approx({"forget": math.exp(-1), "retain": (1 - math.exp(-1)) / 2})
    assert result([TruthRatio()], "forget", observed(1.0)).metrics == {}


def test_truth_ratio_of_the_forget_set_by_prob_mean():
    """Probabilities of each row's correct answer and the geometric mean of its wrong ones; other sets as before."""
    losses = [(1.0, 2.0, 3.0), (3.0, 2.0, 0.5), (2.0, 2.0, 2.0)]
    rows = [observed(9.0, *each) for each in losses]
    expected = 0.0
    for correct, first, second in losses:
        right, wrong = math.exp(-correct), math.sqrt(math.exp(-first) * math.exp(-second))
        expected += right / (right + wrong) / 3
    found = {
        (name, convention): result([TruthRatio()], name, *rows, convention=convention)
        for name in ("forget", "retain")
        for convention in ("prob_mean", "dipo_pl")
    }
    assert found["forget", "prob_mean"].metrics["truth_ratio"] == pytest.approx(expected, rel=1e-12)
    assert found["forget", "dipo_pl"].metrics["truth_ratio"] != pytest.approx(expected, rel=1e-2)
    assert found["retain", "prob_mean"].metrics == found["retain", "dipo_pl"].metrics
    # Forget Quality takes these, so that it is the same.
    ratios = [[row["log_truth_ratio"] for row in each.rows] for each in found.values()]
    assert all(each == ratios[0] for each in ratios)


@pytest.mark.parametrize(("convention", "strength"), [("dipo_pl", 0.0), ("open_unlearning", 0.25)])
def test_extraction_strength_of_nothing_extracted(convention, strength):
    row = observed(1.0, hits=(True, True, True, False))
    found = result([Memorization()], "forget", row, convention=convention).metrics
    assert found == {"exact_memorization": 0.75, "extraction_strength": strength}


def test_zlib_compresses_what_the_loss_is_of():
    texts = ["a long answer, of which few tokens are scored", "another"]
    whole, cut = (
        result([Membership()], "forget", observed(2.0), observed(3.0), answers=texts, scored=each)
        for each in (None, ["a long", "another"])
    )
    assert whole.values("zlib") == zlib([2.0, 3.0], texts).tolist()
    assert cut.values("zlib") == zlib([2.0, 3.0], ["a long", "another"]).tolist()


def test_membership_of_forget_and_holdout():
    sets = {
        "forget": result([Membership()], "forget", observed(0.1, low=-1.0), observed(3.0, low=-3.0)),
        "holdout": result([Membership()], "holdout", observed(2.0, low=-2.0), observed(4.0, low=-4.0)),
    }
    found = all_values(sets, [Membership()])
    assert found["membership_loss_auc"] == found["membership_min_k_auc"] == 0.75
    assert {f"membership_{each}_auc" for each in ("loss", "zlib", "min_k", "min_k_plus_plus")} == found.keys()
    assert all_values({"forget": sets["forget"]}, [Membership()]) == {}
    assert result([Membership()], "retain", observed(1.0)).metrics == {}
    same = sets["holdout"].fingerprint

    def leak(auc, holdout):
        retain = EvaluationResult(
            "dipo_pl", {"membership_min_k_auc": auc}, {"holdout": SetResult({}, [], holdout)}
        )
        return Membership().across(sets, retain).get("priv_leak")

    assert leak(0.5, same) == leak(0.5, None) == pytest.approx(-50)
    # A retain-only model that recognizes every member leaves nothing to compare with.
    assert leak(1.0, same) is leak(0.5, "other rows") is None
    without_holdout = EvaluationResult("dipo_pl", {"membership_min_k_auc": 0.5}, {})
    assert Membership().across(sets, without_holdout)["priv_leak"] == pytest.approx(-50)
    assert "priv_leak" not in Membership().across(sets, EvaluationResult("dipo_pl", {}, {}))


def test_the_reference_attack_takes_the_retain_only_models_losses():
    retain = SetResult({}, [{"row": 0, "nll": [0.25]}, {"row": 1, "nll": [4.0]}])
    rows = result([Membership()], "forget", observed(1.0), observed(3.0), retain=retain).rows
    assert [each["reference"] for each in rows] == [0.75, -1.0]


@pytest.mark.parametrize(("k", "count"), [(0.4, 4), (0.2, 2), (0.01, 1)])
def test_k_is_a_setting_of_the_result(k, count):
    row = observed(1.0, hits=(True,) * 10, low=-5.0)
    lowest = sorted(row["log_probabilities"].tolist())[:count]
    (found,) = result([Membership(k)], "forget", row).rows
    assert found["min_k"] == pytest.approx(-sum(lowest) / count, rel=1e-6)
    assert Membership(k).settings == {"membership_k": k}


def said(*pairs, **changes):
    """Return rows of (generation, answer), and their set's changes."""
    rows = [observed(1.0, generation=generation) for generation, _ in pairs]
    return rows, {"convention": "muse", "answers": [answer for _, answer in pairs]} | changes


CONTINUED = [("he was walking", "he walked on and on"), ("so it ends", "so it ends")]


@pytest.mark.parametrize(("convention", "cut", "first"), [
    # "he" of the three words that are said and the two there are.
    ("muse", ["he walked", "so it ends"], 2 / 5),
    ("dipo_pl", ["he walked", "so it ends"], 2 / 5),
    # Stems make "walking" "walked", and the whole reference has five words.
    ("open_unlearning", ["he walked", "so it ends"], 2 * 2 / 8),
    ("muse", None, 2 / 8),
])  # fmt: skip
def test_verbatim_compares_what_the_convention_says(convention, cut, first):
    rows, changes = said(*CONTINUED, convention=convention, cut=cut)
    found = result([Verbatim()], "verbatim", *rows, **changes)
    assert [row["rouge_l_f1"] for row in found.rows] == pytest.approx([first, 1.0])
    assert all_values({"verbatim": found}, [Verbatim()]) == {
        "forget_verbatim": pytest.approx((first + 1) / 2)
    }
    assert "rouge_l_f1" not in result([Verbatim()], "forget", *rows, **changes).rows[0]


def test_knowledge_of_every_set_of_questions():
    on = "\n\nQuestion: Who?\nAnswer: In Rome"
    sets = {
        "forget_questions": said(("In Paris" + on, "In Rome"), ("writing", "writes")),
        "retain_questions": said(("In Rome" + on, "In Rome")),
        "request_2_questions": said(("In Rome" + on, "Oslo")),
        "forget": said(("In Rome", "In Rome")),
        "verbatim": said(("In Rome", "In Rome")),
    }
    expected = {"forget_knowledge": 0.25, "retain_knowledge": 1.0, "request_2_knowledge": 0.0}
    assert values([Knowledge()], sets) == expected
    rows, changes = said(("writing", "writes"), convention="open_unlearning")
    assert values([Knowledge()], {"forget_questions": (rows, changes)}) == {"forget_knowledge": 1.0}


def test_without_generations_there_is_no_knowledge():
    sets = {name: said((None, "In Rome")) for name in ("verbatim", "forget_questions")}
    assert values([Rouge(), Verbatim(), Knowledge(), Fluency()], sets) == {}
    stored = {name: SetResult({}, [{"rouge_l_f1": 1.0}, {"row": 1}]) for name in sets}
    assert all_values(stored, [Verbatim(), Knowledge()]) == {}


def test_plain_texts_and_short_answers_have_the_general_metrics():
    """Sets without generated answers, down to an answer of one token."""
    rows = [observed(2.0, low=-4.0), observed(1.0, hits=(True,), low=-1.0)]
    sets = {name: (rows, {"convention": "muse"}) for name in ("forget", "retain", "holdout", "request_1")}
    retain = EvaluationResult("muse", {"membership_min_k_auc": 0.5}, {})
    found = values([Probability(), TruthRatio(), Rouge(), ForgetQuality(), *FURTHER], sets, retain)
    assert found["request_1_probability"] == pytest.approx((math.exp(-2) + math.exp(-1)) / 2)
    # The one wrong of four is the third; the short answer is brought back by nothing.
    assert found["request_1_extraction_strength"] == pytest.approx((0.25 + 1) / 2)
    assert found["retain_exact_memorization"] == pytest.approx((0.75 + 1) / 2)
    assert found["membership_min_k_auc"] == 0.5
    assert found["priv_leak"] == pytest.approx(0, abs=1e-6)
    assert not any("truth" in name or "rouge" in name or name == "forget_quality" for name in found)


def test_forget_quality_is_absent_where_a_side_has_no_truth_ratios():
    ratios = SetResult({"truth_ratio": 0.5}, [{"row": 0, "log_truth_ratio": 0.1}] * 3)
    without = SetResult({}, [{"row": 0, "nll": [1.0]}] * 3)
    partly = SetResult({}, [*ratios.rows[:2], *without.rows[:1]])

    def quality(here, there):
        retain = EvaluationResult("dipo_pl", {}, {} if there is None else {"forget": there})
        return ForgetQuality().across({} if here is None else {"forget": here}, retain)

    names = ("forget_quality", "forget_quality_log10_p", "forget_quality_ks_statistic")
    assert quality(ratios, ratios) == dict(zip(names, (1.0, 0.0, 0.0), strict=True))
    for lacking in (None, without, partly, SetResult({}, [])):
        assert quality(ratios, lacking) == quality(lacking, ratios) == {}
    assert ForgetQuality().across({"forget": ratios}, None) == {}


def test_utility_is_reported_only_with_generations():
    metrics = [Probability(), TruthRatio(), Rouge(), ModelUtility(["retain"])]
    row = observed(0.1, 0.2, 1.0, 2.0)
    assert "model_utility" not in values(metrics, {"retain": ([row], {})})
    found = values(metrics, {"retain": ([row | {"generation": "retain 0."}], {})})
    parts = [math.exp(-0.1), 1.0, 1 - math.exp(0.2 - 1.5)]
    assert found["model_utility"] == pytest.approx(3 / sum(1 / each for each in parts))
    assert ModelUtility([]).across({}, None) == {}
