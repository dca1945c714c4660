"""TOFU's logs in its own layout; tests/metrics/test_tofu_logs.py has the published values."""

import json
import math

import pytest

from dipo_pl.errors import InputError
from dipo_pl.evaluation.retain_result import read_result
from dipo_pl.evaluation.tofu_logs import LOGS, is_tofu_log, parse

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
WHOLE = dict.fromkeys(LOGS.values(), FORGET)


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
    among = math.exp(-1) / (math.exp(-1) + math.exp(-2) + math.exp(-4))
    assert result.sets["real_authors"].rows[0]["probability"] == pytest.approx(among)
    forget, retain = (result.sets[name].metrics for name in ("forget", "retain"))
    assert forget["truth_ratio"] == pytest.approx((math.exp(-1.5) + math.exp(-0.5)) / 2)
    assert retain["truth_ratio"] == pytest.approx((1 - math.exp(-1.5)) / 2)
    assert forget["rouge_l_recall"] == result.metrics["forget_rouge_l_recall"] == 0.5
    sets = ("retain", "real_authors", "world_facts")
    parts = [value for name in sets for value in result.sets[name].metrics.values()]
    assert len(parts) == 9
    assert result.metrics["model_utility"] == pytest.approx(9 / sum(1 / part for part in parts))
    assert result.utility_sets == list(sets)
    assert result.convention == "tofu"


def test_log_without_a_utility_set_has_no_model_utility():
    result = parse({key: WHOLE[key] for key in list(WHOLE)[1:]}, "log")
    assert list(result.sets) == ["forget", "real_authors", "world_facts"]
    assert "model_utility" not in result.metrics
    assert result.utility_sets == []


NOT_FINITE = "must be a finite number (got"


@pytest.mark.parametrize(("column", "value", "line"), [
    ("rougeL_recall", {"0": 0.5}, ": avg_gt_loss has 2 rows and rougeL_recall has no row 1"),
    ("avg_gt_loss", {"0": 1.0, "2": 1.0}, ", avg_gt_loss has 2 rows and none of them is row 1"),
    ("avg_gt_loss", {"0": 1.0, "1": math.nan}, f", avg_gt_loss, row 1 {NOT_FINITE} nan)"),
    ("average_perturb_loss", {"0": [1.0, None], "1": [1.0, 2.0]}, f"average_perturb_loss, row 0 {NOT_FINITE} None"),
    ("average_perturb_loss", {"0": [1.0], "1": [1.0, 2.0]}, ": wrong_nll"),
    ("avg_gt_loss", {"0": -1.0, "1": 1.0}, ": nll must be >= 0"),
    ("avg_gt_loss", "x", ", avg_gt_loss must have values by row (got str)"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(column, value, line):
    given = {"eval_log_forget.json": FORGET | {column: value}}
    assert is_tofu_log(given)
    with pytest.raises(InputError) as error:
        parse(given, "log")
    assert str(error.value).startswith("log, eval_log_forget.json")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("given", "line"), [
    ({"forget": {"avg_gt_loss": [1.0]}}, "log, forget has no avg_paraphrased_loss"),
    ({"forget": dict.fromkeys(FORGET, [1.0] * 301)},
     "log, forget has 301 rows, and the convention tofu takes the first 300"),
])  # fmt: skip
def test_what_a_reduced_log_lacks_is_named(given, line):
    with pytest.raises(InputError, match=line):
        parse(given, "log")
