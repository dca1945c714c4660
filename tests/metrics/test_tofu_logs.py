"""The numbers that TOFU's own aggregation gives on its published logs of Llama-2-7b-chat."""

import functools
import json
from decimal import Decimal
from importlib import resources

import numpy as np
import pytest
import torch
from torchmetrics import MeanMetric

from dipo_pl.metrics import (
    AnswerProbability,
    ForgetQualityTest,
    ModelUtility,
    OptionProbability,
    TruthRatio,
    answer_probability,
    arithmetic_truth_ratio,
    forget_quality,
    log_truth_ratio,
    model_utility,
    option_probability,
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
    """ROUGE, probability and truth ratio of one set."""
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
    ],
)
def test_model_utility(model, ratio, expected):
    assert utility(load(model), ratio) == printed(expected)


@pytest.mark.parametrize("ratio", [truth_ratio, log_truth_ratio, lambda *nll: 1 / truth_ratio(*nll)])
def test_forget_quality_of_full_against_retain90(ratio):
    quality = forget_quality(*(ratios(load(model)["forget"], ratio) for model in ("full", "retain90")))
    assert quality.p_value == printed("1.834066e-21")
    assert quality.log10_p == pytest.approx(np.log10(1.834066e-21), abs=1e-6)
    assert quality.ks_statistic == printed("0.396667")


def test_first_rows():
    forget, real_authors = load("full")["forget"], load("full")["real_authors"]
    assert forget["avg_paraphrased_loss"][0] == printed("2.228723")
    wrong = ("3.355818", "3.690197", "3.719408", "4.432242", "2.973668")
    assert forget["average_perturb_loss"][0] == [printed(digits) for digits in wrong]
    assert ratios(forget)[0].item() == printed("0.245234")
    options = option_probability(real_authors["avg_gt_loss"], real_authors["average_perturb_loss"])
    assert -options[0].log().item() == printed("1.187734")


def by_row(values):
    values = torch.tensor(values, dtype=torch.float64)
    return torch.arange(len(values)), values


def nine_parts():
    for name in ("retain", "real_authors", "world_facts"):
        yield f"{name}_probability", AnswerProbability() if name == "retain" else OptionProbability()
        yield f"{name}_truth_ratio", TruthRatio(truth_ratio_margin)
        yield f"{name}_rouge", MeanMetric()


@pytest.mark.parametrize(("model", "expected"), [("full", "0.622677"), ("retain90", "0.613745")])
def test_torchmetrics_give_model_utility(model, expected):
    logs, metric = load(model), ModelUtility(dict(nine_parts()))
    for name in ("retain", "real_authors", "world_facts"):
        rows, correct = by_row(logs[name]["avg_gt_loss"])
        _, paraphrased = by_row(logs[name]["avg_paraphrased_loss"])
        _, wrong = by_row(logs[name]["average_perturb_loss"])
        metric.update(f"{name}_probability", rows, correct, *([] if name == "retain" else [wrong]))
        metric.update(f"{name}_truth_ratio", rows, paraphrased, wrong)
        metric.update(f"{name}_rouge", by_row(logs[name]["rougeL_recall"])[1])
    assert metric.compute() == printed(expected)


def test_torchmetrics_give_forget_quality():
    full, retain = load("full")["forget"], load("retain90")["forget"]
    metric = ForgetQualityTest(ratios(retain, log_truth_ratio))
    rows, correct = by_row(full["avg_paraphrased_loss"])
    metric.update(rows, correct, by_row(full["average_perturb_loss"])[1])
    assert metric.compute().p_value == printed("1.834066e-21")
    assert metric.compute().ks_statistic == printed("0.396667")


def test_open_unlearnings_epsilon_changes_little_where_no_model_has_collapsed():
    full, retain = load("full"), load("retain90")
    assert utility(full, functools.partial(truth_ratio, epsilon=1e-10)) == printed("0.622677")
    ratio = functools.partial(log_truth_ratio, epsilon=1e-10)
    quality = forget_quality(ratios(full["forget"], ratio), ratios(retain["forget"], ratio))
    assert quality.p_value == printed("1.834066e-21")
    # Yet it is there: the least likely fact is at nearly 12 nats per token.
    facts = ratios(full["world_facts"], ratio) - ratios(full["world_facts"], log_truth_ratio)
    assert 0 < -facts.min() < 1e-4
