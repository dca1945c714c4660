"""TOFU's logs give the numbers that its own aggregation gives on them."""

import json
import math

import pytest

from dipo_pl.errors import InputError
from dipo_pl.evaluation.published_results import published
from dipo_pl.evaluation.retain_result import read_result
from dipo_pl.evaluation.tofu_logs import is_tofu_log, parse
from dipo_pl.metrics.forget_quality import forget_quality

# TOFU's layout, two rows, as its evaluation writes it: more columns than are read, rows by index.
FORGET = {
    "avg_gt_loss": {"0": 1.0, "1": 2.0},
    "gt_loss": {"0": 10.0, "1": 20.0},
    "num_token_gt": {"0": 10, "1": 10},
    "avg_paraphrased_loss": {"1": 2.5, "0": 1.5},
    "average_perturb_loss": {"0": [2.0, 4.0], "1": [1.0, 3.0]},
    "rouge1_recall": {"0": 0.0, "1": 0.0},
    "rougeL_recall": {"0": 0.25, "1": 0.75},
}
WHOLE = {
    "eval_log.json": FORGET,
    "eval_real_author_wo_options.json": FORGET,
    "eval_real_world_wo_options.json": FORGET,
    "eval_log_forget.json": FORGET,
}


def changed(column, value):
    return {"eval_log_forget.json": FORGET | {column: value}}


@pytest.mark.parametrize(
    ("name", "utility"), [("llama2-7b_full", 0.622677), ("llama2-7b_retain90", 0.613745)]
)
def test_model_utility_of_published_results(name, utility):
    result = published(name)
    assert result.metrics["model_utility"] == pytest.approx(utility, abs=5e-7)
    assert result.convention == "tofu"
    assert result.utility_sets == ["retain", "real_authors", "world_facts"]
    assert {key: len(each.rows) for key, each in result.sets.items()} == {
        "retain": 300, "forget": 300, "real_authors": 100, "world_facts": 117,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rouge", "probability", "ratio"),
    [
        ("retain", 0.9857, 0.9895, 0.4747),
        ("real_authors", 0.9330, 0.4555, 0.5962),
        ("world_facts", 0.8825, 0.4186, 0.5390),
        ("forget", 0.9854, 0.9909, 0.5160),
    ],
)
def test_figures_of_each_set(name, rouge, probability, ratio):
    found = published("llama2-7b_full").sets[name].metrics
    assert found["rouge_l_recall"] == pytest.approx(rouge, abs=5e-5)
    assert found["probability"] == pytest.approx(probability, abs=5e-5)
    assert found["truth_ratio"] == pytest.approx(ratio, abs=5e-5)


def test_forget_quality_of_the_one_against_the_other():
    full, retain = published("llama2-7b_full"), published("llama2-7b_retain90")
    assert not any("quality" in name for name in full.metrics)
    ratios = [each.sets["forget"].values("log_truth_ratio") for each in (full, retain)]
    figures = forget_quality(*ratios)._asdict()
    assert figures["forget_quality"] == pytest.approx(1.834066e-21, rel=1e-6)
    assert figures["forget_quality_log10_p"] == pytest.approx(math.log10(1.834066e-21), abs=1e-6)
    assert figures["forget_quality_ks_statistic"] == pytest.approx(0.396667, abs=5e-7)


def test_whole_log_gives_what_its_numbers_make(tmp_path):
    path = tmp_path / "any name"
    path.write_text(json.dumps(WHOLE))
    result = read_result(path)
    first, second = result.sets["forget"].rows
    assert first == {
        "row": 0,
        "nll": [1.0, 1.5, 2.0, 4.0],
        "probability": pytest.approx(math.exp(-1)),
        "log_truth_ratio": 1.5 - 3.0,
        "rouge_l_recall": 0.25,
    }
    assert second["log_truth_ratio"] == 2.5 - 2.0
    assert result.sets["real_authors"].rows[0]["probability"] == pytest.approx(
        math.exp(-1) / (math.exp(-1) + math.exp(-2) + math.exp(-4))
    )
    forget, retain = (result.sets[name].metrics for name in ("forget", "retain"))
    assert forget["truth_ratio"] == pytest.approx((math.exp(-1.5) + math.exp(-0.5)) / 2)
    assert retain["truth_ratio"] == pytest.approx((1 - math.exp(-1.5)) / 2)
    assert forget["rouge_l_recall"] == result.metrics["forget_rouge_l_recall"] == 0.5
    parts = [
        value
        for name in ("retain", "real_authors", "world_facts")
        for value in result.sets[name].metrics.values()
    ]
    assert len(parts) == 9
    assert result.metrics["model_utility"] == pytest.approx(9 / sum(1 / part for part in parts))


def test_log_without_a_utility_set_has_no_model_utility():
    result = parse({key: WHOLE[key] for key in list(WHOLE)[1:]}, "log")
    assert list(result.sets) == ["forget", "real_authors", "world_facts"]
    assert "model_utility" not in result.metrics
    assert result.utility_sets == []


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (changed("rougeL_recall", {"0": 0.5}), "avg_gt_loss has 2 rows and rougeL_recall has no row 1"),
        (
            changed("avg_gt_loss", {"0": 1.0, "2": 1.0}),
            "log, eval_log_forget.json, avg_gt_loss has 2 rows and none of them is row 1",
        ),
        (
            changed("avg_gt_loss", {"0": 1.0, "1": math.nan}),
            "avg_gt_loss, row 1 must be a finite number (got nan)",
        ),
        (
            changed("average_perturb_loss", {"0": [1.0, None], "1": [1.0, 2.0]}),
            "average_perturb_loss, row 0 must be a finite number (got None)",
        ),
        (
            changed("average_perturb_loss", {"0": [1.0], "1": [1.0, 2.0]}),
            "log, eval_log_forget.json: wrong_nll",
        ),
        (changed("avg_gt_loss", {"0": -1.0, "1": 1.0}), "log, eval_log_forget.json: nll must be >= 0"),
        (changed("avg_gt_loss", "x"), "avg_gt_loss must have values by row (got 'x')"),
        ({"forget": {"avg_gt_loss": [1.0]}}, "log, forget has no avg_paraphrased_loss"),
        (
            {"forget": dict.fromkeys(FORGET, [1.0] * 301)},
            "log, forget has 301 rows, and the convention tofu takes the first 300",
        ),
    ],
)
def test_what_cannot_be_read_is_named(given, line):
    assert is_tofu_log(given)
    with pytest.raises(InputError) as error:
        parse(given, "log")
    assert line in str(error.value)
    assert "\n" not in str(error.value)
