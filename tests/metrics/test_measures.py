"""Measures on observations written by hand: what conventions change, and what is left out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dipo_pl.errors import TrainingError
from dipo_pl.evaluation.conventions import CONVENTIONS
from dipo_pl.evaluation.measurement import measured
from dipo_pl.evaluation.observation import Observation
from dipo_pl.evaluation.result import EvaluationResult, SetResult
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.measures import (
    Answered,
    Fluency,
    Knowledge,
    Measure,
    Membership,
    Memorization,
    Probability,
    TruthRatio,
    Verbatim,
)
from dipo_pl.rows import Row


def observed(*nll, hits=(True, True, False, True), low=-3.0, generation=None):
    count = len(hits)
    scores = np.linspace(low, -0.1, count, dtype=np.float32)
    return Observation(
        nll,
        np.arange(count),
        np.where(hits, np.arange(count), 99),
        scores,
        scores - 1,
        scores**2 + 0.5,
        generation,
    )


def answered(name, *observations, convention="dipo_pl", options=False):
    rows = [Row((("user", f"{name} {i}?"),), f"{name} {i}.") for i in range(len(observations))]
    return Answered(EvaluationSet(name, rows, options), observations, CONVENTIONS[convention])


def test_epsilon_of_open_unlearning():
    """Where the right answer has become as unlikely as the epsilon itself."""
    row = observed(22.0, 23.0, 24.0, 26.0)
    for convention, epsilon in (("dipo_pl", 0.0), ("open_unlearning", 1e-10)):
        (ratio,) = (
            TruthRatio().rows(answered("forget", row, convention=convention))["log_truth_ratio"].tolist()
        )
        assert ratio == pytest.approx(-25.0 - math.log(math.exp(-23.0) + epsilon))
        given = answered("real_authors", row, convention=convention, options=True)
        (probability,) = Probability().rows(given)["probability"].tolist()
        total = sum(math.exp(-each) for each in (22.0, 24.0, 26.0)) + epsilon
        assert probability == pytest.approx(math.exp(-22.0) / total)


def test_arithmetic_truth_ratios_stay_in_log_space():
    row = observed(900.0, 1000.0, 990.0, 1010.0)
    (ratio,) = TruthRatio().rows(answered("forget", row, convention="arithmetic"))["log_truth_ratio"].tolist()
    assert ratio == pytest.approx(1000 - 990 - math.log(2) + math.log1p(math.exp(-20)))


def test_extraction_strength_of_nothing_extracted():
    row = observed(1.0, hits=(True, True, True, False))
    for convention, expected in (("dipo_pl", 0.0), ("open_unlearning", 0.25)):
        values = Memorization().rows(answered("forget", row, convention=convention))
        assert values["extraction_strength"].tolist() == [expected]
        assert values["exact_memorization"].tolist() == [0.75]


def retain_only(auc, holdout="same"):
    sets = {"holdout": SetResult({}, [], holdout)}
    return EvaluationResult("dipo_pl", {"membership_min_k_auc": auc}, sets)


def test_privleak_is_left_out_where_it_means_nothing():
    sets = [
        answered("forget", observed(0.1, low=-1.0), observed(3.0, low=-3.0)),
        answered("holdout", observed(2.0, low=-2.0), observed(4.0, low=-4.0)),
    ]
    found = measured(sets, [Membership()], [])
    assert (found.metrics["membership_loss_auc"], found.metrics["membership_min_k_auc"]) == (0.75, 0.75)
    assert "priv_leak" not in found.metrics
    same = found.sets["holdout"].fingerprint

    def leak(retain):
        return Membership().across(found.sets, retain).get("priv_leak")

    assert leak(retain_only(0.5, same)) == leak(retain_only(0.5, None)) == pytest.approx(-50)
    assert leak(retain_only(1.0, same)) is None
    assert leak(retain_only(0.5, "other rows")) is None
    assert leak(EvaluationResult("dipo_pl", {}, {})) is None


def said(name, *pairs, convention="muse", cut=None):
    """A set of (generation, answer), with the answers cut."""
    rows = [Row((("user", "?"),), answer) for _, answer in pairs]
    observations = [observed(1.0, generation=generation) for generation, _ in pairs]
    return Answered(
        EvaluationSet(name, rows, new_tokens=4, cut_answers=cut), observations, CONVENTIONS[convention]
    )


CONTINUED = [("he was walking", "he walked on and on"), ("so it ends", "so it ends")]


@pytest.mark.parametrize(
    ("convention", "first"),
    [
        # "he" of the three words that are said and the two there are.
        ("muse", 2 / 5),
        ("dipo_pl", 2 / 5),
        # Stems make "walking" "walked", and the whole reference has five words.
        ("open_unlearning", 2 * 2 / 8),
    ],
)
def test_verbatim_compares_what_the_convention_says(convention, first):
    given = said("verbatim", *CONTINUED, convention=convention, cut=["he walked", "so it ends"])
    assert Verbatim().rows(given)["rouge_l_f1"].tolist() == pytest.approx([first, 1.0])
    found = measured([given], [Verbatim()], [])
    assert found.metrics["forget_verbatim"] == pytest.approx((first + 1) / 2)
    assert "verbatim_rouge_l_f1" not in found.metrics
    assert [row["rouge_l_f1"] for row in found.sets["verbatim"].rows] == pytest.approx([first, 1.0])
    assert Verbatim().rows(said("forget", *CONTINUED)) == {}


def test_verbatim_without_a_cut_takes_the_whole_answer():
    assert Verbatim().rows(said("verbatim", *CONTINUED))["rouge_l_f1"].tolist() == pytest.approx([2 / 8, 1.0])


def test_knowledge_of_every_set_of_questions():
    on = "\n\nQuestion: Who?\nAnswer: In Rome"
    sets = [
        said("forget_questions", ("In Paris" + on, "In Rome"), ("writing", "writes")),
        said("retain_questions", ("In Rome" + on, "In Rome")),
        said("request_2_questions", ("In Rome" + on, "Oslo")),
        said("forget", ("In Rome", "In Rome")),
        said("verbatim", ("In Rome", "In Rome")),
    ]
    found = measured(sets, [Knowledge()], [])
    figures = {name: value for name, value in found.metrics.items() if name.endswith("knowledge")}
    assert figures == {"forget_knowledge": 0.25, "retain_knowledge": 1.0, "request_2_knowledge": 0.0}
    assert [row["rouge_l_f1"] for row in found.sets["forget_questions"].rows] == [0.5, 0.0]
    assert "rouge_l_f1" not in found.sets["verbatim"].rows[0]
    stemmed = said("forget_questions", ("writing", "writes"), convention="open_unlearning")
    assert measured([stemmed], [Knowledge()], []).metrics["forget_knowledge"] == 1.0


def test_without_generations_there_is_no_knowledge():
    sets = [said(name, (None, "In Rome")) for name in ("verbatim", "forget_questions")]
    found = measured(sets, [Verbatim(), Knowledge(), Fluency()], [])
    assert "forget_verbatim" not in found.metrics
    assert "forget_knowledge" not in found.metrics
    assert not any("rouge" in name or "repetition" in name for name in found.metrics)
    # One answer of two is none.
    half = said("verbatim", ("In Rome", "In Rome"), (None, "In Rome"))
    assert "forget_verbatim" not in measured([half], [Verbatim()], []).metrics


def test_plain_texts_and_short_answers_have_the_general_figures():
    """Sets that nothing is generated for, down to an answer of one token."""
    rows = [Row((), "A long text."), Row((), "b")]
    seen = [observed(2.0, low=-4.0), observed(1.0, hits=(True,), low=-1.0)]
    sets = [
        Answered(EvaluationSet(name, rows, new_tokens=0), seen, CONVENTIONS["muse"])
        for name in ("forget", "retain", "holdout", "request_1")
    ]
    found = measured(
        sets, [Memorization(), Membership(), Fluency(), Verbatim(), Knowledge()], [], retain_only(0.5, None)
    )
    figures = found.metrics
    assert figures["request_1_probability"] == pytest.approx((math.exp(-2) + math.exp(-1)) / 2)
    # The one wrong of four is the third; the short answer is brought back by nothing.
    assert figures["request_1_extraction_strength"] == pytest.approx((0.25 + 1) / 2)
    assert figures["retain_exact_memorization"] == pytest.approx((0.75 + 1) / 2)
    assert figures["membership_min_k_auc"] == 0.5
    assert figures["priv_leak"] == pytest.approx(0, abs=1e-6)
    assert not any("truth" in name or "rouge" in name or name == "forget_quality" for name in figures)


def test_forget_quality_is_silent_where_a_side_has_no_truth_ratios():
    ratios = SetResult({"truth_ratio": 0.5}, [{"row": 0, "log_truth_ratio": 0.1}] * 3)
    without = SetResult({}, [{"row": 0, "nll": [1.0]}] * 3)
    partly = SetResult({}, [*ratios.rows[:2], *without.rows[:1]])

    def quality(here, there):
        sets = {} if here is None else {"forget": here}
        retain = EvaluationResult("dipo_pl", {}, {} if there is None else {"forget": there})
        return TruthRatio().across(sets, retain)

    assert quality(ratios, ratios)["forget_quality"] == 1.0
    for lacking in (None, without, partly, SetResult({}, [])):
        assert quality(ratios, lacking) == quality(lacking, ratios) == {}
    assert TruthRatio().across({"forget": ratios}, None) == {}


def test_k_is_a_setting_of_the_result():
    assert Membership(k=0.2).settings == {"membership_k": 0.2}
    row = observed(1.0, hits=(True,) * 10, low=-5.0)
    lowest = sorted(row.log_probabilities.tolist())
    for k, count in ((0.4, 4), (0.2, 2), (0.01, 1)):
        (value,) = Membership(k).rows(answered("forget", row))["min_k"].tolist()
        assert value == pytest.approx(-sum(lowest[:count]) / count, rel=1e-6)


def test_utility_is_reported_only_with_generations():
    sets = [answered("retain", observed(0.1, 0.2, 1.0, 2.0))]
    assert "model_utility" not in measured(sets, [], ["retain"]).metrics
    said = [replace(sets[0], observations=[replace(sets[0].observations[0], generation="retain 0.")])]
    figures = measured(said, [], ["retain"]).metrics
    parts = [math.exp(-0.1), 1.0, 1 - math.exp(0.2 - 1.5)]
    assert figures["model_utility"] == pytest.approx(3 / sum(1 / each for each in parts))


@pytest.mark.parametrize("values", [[1.0, math.nan], [1.0], [[1.0], [2.0]]])
def test_a_measure_of_ones_own_that_goes_wrong_is_named(values):
    class Mine(Measure):
        def rows(self, answered):
            return {"mine": torch.tensor(values)}

    with pytest.raises(
        TrainingError, match=r"^Mine must give a finite number mine for each of the 2 rows of forget"
    ):
        measured([answered("forget", observed(1.0), observed(2.0))], [Mine()], [])
