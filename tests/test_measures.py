"""Measures on observations written by hand: what conventions change, and what is left out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dipo_pl.data_modules.rows import EvaluationSet, Row
from dipo_pl.errors import TrainingError
from dipo_pl.evaluation.conventions import CONVENTIONS
from dipo_pl.evaluation.measurement import measured
from dipo_pl.evaluation.observation import Observation
from dipo_pl.evaluation.result import EvaluationResult, SetResult
from dipo_pl.measures import Answered, Measure, Membership, Memorization, Probability, TruthRatio


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
