"""The values that TOFU's own aggregation gives on its published logs of Llama-2-7b-chat."""

import functools
from decimal import Decimal

import numpy as np
import pytest

from dipo_pl.evaluation.published_results import published
from dipo_pl.metrics.forget_quality import forget_quality
from dipo_pl.metrics.model_utility import model_utility
from dipo_pl.metrics.probability import option_probability
from dipo_pl.metrics.truth_ratio import log_arithmetic_truth_ratio, log_truth_ratio, truth_ratio_margin

with_epsilon = functools.partial(log_truth_ratio, epsilon=1e-10)


def load(model):
    return published(f"llama2-7b_{model}")


def printed(digits):
    """Equal to a number as far as it was printed: to half a unit in its last place."""
    exponent = Decimal(digits).as_tuple().exponent
    return pytest.approx(float(digits), rel=0, abs=0.5 * 10.0**exponent)


def ratios(found, ratio=log_truth_ratio):
    """Return the log truth ratios of a set's rows, made anew from their losses."""
    nll = np.array([row["nll"] for row in found.rows])
    return ratio(nll[:, 1], nll[:, 2:])


@pytest.mark.parametrize(("model", "name", "rows", "expected"), [
    ("full", "retain", 300, ("0.9857", "0.9895", "0.4747")),
    ("full", "real_authors", 100, ("0.9330", "0.4555", "0.5962")),
    ("full", "world_facts", 117, ("0.8825", "0.4186", "0.5390")),
    ("full", "forget", 300, ("0.9854", "0.9909", "0.5160")),
    ("retain90", "retain", 300, ("0.9758", "0.9889", "0.4710")),
    ("retain90", "real_authors", 100, ("0.9230", "0.4341", "0.5707")),
    ("retain90", "world_facts", 117, ("0.8974", "0.4143", "0.5442")),
    ("retain90", "forget", 300, ("0.4082", "0.1476", "0.6740")),
])  # fmt: skip
def test_scores_of_each_set(model, name, rows, expected):
    found = load(model).sets[name]
    assert len(found.rows) == rows
    values = [found.metrics[key] for key in ("rouge_l_recall", "probability", "truth_ratio")]
    assert values == [printed(digits) for digits in expected]


@pytest.mark.parametrize(("model", "expected"), [("full", "0.622677"), ("retain90", "0.613745")])
def test_model_utility(model, expected):
    result = load(model)
    assert result.metrics["model_utility"] == printed(expected)
    assert not any("quality" in name for name in result.metrics)


# open-unlearning's epsilon changes little where no model has collapsed.
@pytest.mark.parametrize(
    ("ratio", "expected"), [(log_arithmetic_truth_ratio, "0.585886"), (with_epsilon, "0.622677")]
)
def test_model_utility_with_other_truth_ratios(ratio, expected):
    sets = [load("full").sets[name] for name in ("retain", "real_authors", "world_facts")]
    parts = [found.metrics[key] for found in sets for key in ("rouge_l_recall", "probability")]
    parts += [truth_ratio_margin(ratios(found, ratio)).mean().item() for found in sets]
    assert model_utility(parts) == printed(expected)


@pytest.mark.parametrize("ratio", [
    log_truth_ratio,
    lambda *nll: log_truth_ratio(*nll).exp(),
    lambda *nll: -log_truth_ratio(*nll),
    with_epsilon,
])  # fmt: skip
def test_forget_quality_of_full_against_retain90(ratio):
    quality = forget_quality(*(ratios(load(model).sets["forget"], ratio) for model in ("full", "retain90")))
    assert quality.forget_quality == printed("1.834066e-21")
    assert quality.forget_quality_log10_p == pytest.approx(np.log10(1.834066e-21), abs=1e-6)
    assert quality.forget_quality_ks_statistic == printed("0.396667")


def test_first_rows():
    forget, facts = (load("full").sets[name].rows[0] for name in ("forget", "real_authors"))
    losses = ("2.228723", "3.355818", "3.690197", "3.719408", "4.432242", "2.973668")
    assert forget["nll"][1:] == [printed(digits) for digits in losses]
    assert np.exp(forget["log_truth_ratio"]) == printed("0.245234")
    options = option_probability(facts["nll"][:1], [facts["nll"][2:]])
    assert -options[0].log().item() == -np.log(facts["probability"]) == printed("1.187734")


def test_open_unlearnings_epsilon_is_there():
    """The least likely fact is at nearly 12 nats per token."""
    facts = load("full").sets["world_facts"]
    assert 0 < -(ratios(facts, with_epsilon) - ratios(facts)).min() < 1e-4
