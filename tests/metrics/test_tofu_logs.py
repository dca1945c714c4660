"""The values that TOFU's own aggregation gives on its published logs of Llama-2-7b-chat."""

import functools
import json
from decimal import Decimal
from importlib import resources

import numpy as np
import pytest

from dipo_pl.metrics.forget_quality import forget_quality
from dipo_pl.metrics.model_utility import model_utility
from dipo_pl.metrics.probability import answer_probability, option_probability
from dipo_pl.metrics.truth_ratio import (
    arithmetic_truth_ratio,
    log_truth_ratio,
    truth_ratio,
    truth_ratio_closeness,
    truth_ratio_margin,
)

LOGS = resources.files("dipo_pl.evaluation") / "published"


def load(model):
    return json.loads((LOGS / f"llama2-7b_{model}.json").read_text())


def printed(digits):
    """Equal to a number as far as it was printed: to half a unit in its last place."""
    exponent = Decimal(digits).as_tuple().exponent
    return pytest.approx(float(digits), rel=0, abs=0.5 * 10.0**exponent)


def ratios(group, ratio=truth_ratio):
    return ratio(group["avg_paraphrased_loss"], group["average_perturb_loss"])


def scores(logs, name, ratio=truth_ratio):
    """Return ROUGE, probability and truth ratio of one set."""
    group = logs[name]
    if name in ("real_authors", "world_facts"):
        probability = option_probability(group["avg_gt_loss"], group["average_perturb_loss"])
    else:
        probability = answer_probability(group["avg_gt_loss"])
    score = truth_ratio_closeness if name == "forget" else truth_ratio_margin
    rouge = float(np.mean(group["rougeL_recall"]))
    return rouge, probability.mean().item(), score(ratios(group, ratio)).mean().item()


def utility(logs, ratio=truth_ratio):
    sets = ("retain", "real_authors", "world_facts")
    return model_utility([value for name in sets for value in scores(logs, name, ratio)])


@pytest.mark.parametrize(
    ("model", "name", "expected"),
    [
        ("full", "retain", ("0.9857", "0.9895", "0.4747")),
        ("full", "real_authors", ("0.9330", "0.4555", "0.5962")),
        ("full", "world_facts", ("0.8825", "0.4186", "0.5390")),
        ("full", "forget", ("0.9854", "0.9909", "0.5160")),
        ("retain90", "retain", ("0.9758", "0.9889", "0.4710")),
        ("retain90", "real_authors", ("0.9230", "0.4341", "0.5707")),
        ("retain90", "world_facts", ("0.8974", "0.4143", "0.5442")),
        ("retain90", "forget", ("0.4082", "0.1476", "0.6740")),
    ],
)
def test_scores_of_each_set(model, name, expected):
    assert scores(load(model), name) == tuple(printed(digits) for digits in expected)


@pytest.mark.parametrize(
    ("model", "ratio", "expected"),
    [
        ("full", truth_ratio, "0.622677"),
        ("retain90", truth_ratio, "0.613745"),
        ("full", arithmetic_truth_ratio, "0.585886"),
        # open-unlearning's epsilon changes little where no model has collapsed.
        ("full", functools.partial(truth_ratio, epsilon=1e-10), "0.622677"),
    ],
)
def test_model_utility(model, ratio, expected):
    assert utility(load(model), ratio) == printed(expected)


@pytest.mark.parametrize(
    "ratio",
    [
        truth_ratio,
        log_truth_ratio,
        lambda *nll: 1 / truth_ratio(*nll),
        functools.partial(log_truth_ratio, epsilon=1e-10),
    ],
)
def test_forget_quality_of_full_against_retain90(ratio):
    quality = forget_quality(*(ratios(load(model)["forget"], ratio) for model in ("full", "retain90")))
    assert quality.forget_quality == printed("1.834066e-21")
    assert quality.forget_quality_log10_p == pytest.approx(np.log10(1.834066e-21), abs=1e-6)
    assert quality.forget_quality_ks_statistic == printed("0.396667")


def test_first_rows():
    forget, real_authors = load("full")["forget"], load("full")["real_authors"]
    assert forget["avg_paraphrased_loss"][0] == printed("2.228723")
    wrong = ("3.355818", "3.690197", "3.719408", "4.432242", "2.973668")
    assert forget["average_perturb_loss"][0] == [printed(digits) for digits in wrong]
    assert ratios(forget)[0].item() == printed("0.245234")
    options = option_probability(real_authors["avg_gt_loss"], real_authors["average_perturb_loss"])
    assert -options[0].log().item() == printed("1.187734")


def test_open_unlearnings_epsilon_is_there():
    """The least likely fact is at nearly 12 nats per token."""
    facts = load("full")["world_facts"]
    difference = ratios(facts, functools.partial(log_truth_ratio, epsilon=1e-10)) - ratios(
        facts, log_truth_ratio
    )
    assert 0 < -difference.min() < 1e-4
