"""Files in open-unlearning's layout, by hand: what is read is what they say, and what is written reads the same."""

import copy
import json
import math
from dataclasses import replace

import pytest

from dipo_pl.errors import InputError
from dipo_pl.evaluation.open_unlearning import evaluation, is_open_unlearning, parse, summary, write
from dipo_pl.evaluation.published_results import published
from dipo_pl.evaluation.retain_result import read_result

ORIGINAL, CORRECT, WRONG = [1.0, 0.5], [1.5, 20.0], [[2.0, 4.0], [1.0, 2.0]]
EPSILON = 1e-10


def by_index(*values, name="score"):
    return {str(row): {name: each} for row, each in enumerate(values)}


def log(agg_value, *values, name="score"):
    return {"agg_value": agg_value, "value_by_index": by_index(*values, name=name)}


def answers(agg_value, losses):
    def prob(loss):
        return [math.exp(-each) for each in loss] if isinstance(loss, list) else math.exp(-loss)

    entries = {str(row): {"prob": prob(each), "avg_loss": each} for row, each in enumerate(losses)}
    return {"agg_value": agg_value, "value_by_index": entries}


def rouge(agg_value, field, *values):
    """Return a ROUGE metric of which one field counts, and generations "text 0", ..."""
    others = {
        "rouge1_recall": 0.9, "rougeL_f1": 0.8, "rougeL_recall": 0.7, "input": "...", "ground_truth": "A.",
    }  # fmt: skip
    entries = {
        str(row): {**others, field: each, "generation": f"text {row}"} for row, each in enumerate(values)
    }
    return {"agg_value": agg_value, "value_by_index": entries}


def ratios(correct):
    return [
        math.exp(-sum(wrong) / 2) / (math.exp(-right) + EPSILON)
        for right, wrong in zip(correct, WRONG, strict=True)
    ]


def attack(forget, holdout, auc):
    sides = {
        name: log(sum(each) / len(each), *each) for name, each in (("forget", forget), ("holdout", holdout))
    }
    return {**sides, "auc": auc, "agg_value": auc}


def options(prefix):
    among = [
        math.exp(-true) / (math.exp(-true) + sum(math.exp(-each) for each in wrong) + EPSILON)
        for true, wrong in zip(ORIGINAL, WRONG, strict=True)
    ]
    return {
        f"{prefix}_Q_A_Prob": answers(0.49, ORIGINAL),
        f"{prefix}_Q_A_PERT_Prob": answers(0.2, WRONG),
        f"{prefix}_Q_A_Prob_normalised": log(0.51, *among, name="prob"),
        f"{prefix}_Q_A_ROUGE": log(0.9, 0.8, 1.0, name="rougeL_recall"),
        f"{prefix}_Truth_Ratio": log(0.41, *ratios(ORIGINAL)),
    }


def free(prefix, ratio):
    return {
        f"{prefix}_Q_A_Prob": answers(0.48, ORIGINAL),
        f"{prefix}_Q_A_PARA_Prob": answers(0.11, CORRECT),
        f"{prefix}_Q_A_PERT_Prob": answers(0.2, WRONG),
        f"{prefix}_Q_A_ROUGE": rouge(0.35, "rougeL_recall", 0.3, 0.4),
        ratio: log(0.42, *ratios(CORRECT)),
    }


FILE = {
    **free("forget", "forget_truth_ratio"),
    **free("retain", "retain_Truth_Ratio"),
    **options("ra"),
    **options("wf"),
    "exact_memorization": log(0.6, 0.5, None),
    "extraction_strength": log(0.15, 0.1, 0.2),
    "mia_loss": attack(ORIGINAL, [3.0, 4.0, 5.0], 1.0),
    "mia_min_k": attack([1.0, 4.0], [3.0, 5.0, 2.0], 5 / 6),
    "mia_gradnorm": attack([1.0, 2.0], [3.0, 5.0, 2.0], 0.9),
    "forget_quality": {"agg_value": 1e-5},
    "privleak": {"agg_value": -66.0},
    "model_utility": {"agg_value": 0.55},
    "forget_Q_A_gibberish": log(0.9, 0.9, 0.9),
}
METRICS = {
    "forget_probability": 0.48, "forget_rouge_l_recall": 0.35, "forget_truth_ratio": 0.42,
    "retain_probability": 0.48, "retain_rouge_l_recall": 0.35, "retain_truth_ratio": 0.42,
    "real_authors_probability": 0.51, "real_authors_rouge_l_recall": 0.9, "real_authors_truth_ratio": 0.41,
    "world_facts_probability": 0.51, "world_facts_rouge_l_recall": 0.9, "world_facts_truth_ratio": 0.41,
    "forget_exact_memorization": 0.6, "forget_extraction_strength": 0.15,
    "membership_loss_auc": 1.0, "membership_min_k_auc": 5 / 6, "membership_gradient_norm_auc": 0.9,
    "forget_quality": 1e-5, "forget_quality_log10_p": pytest.approx(-5.0), "priv_leak": -66.0, "model_utility": 0.55,
}  # fmt: skip
MUSE = {
    "forget_verbmem_ROUGE": rouge(0.5, "rougeL_f1", 0.25, 0.5, 0.75),
    "forget_knowmem_ROUGE": rouge(0.25, "rougeL_f1", 0.0, 0.5),
    "retain_knowmem_ROUGE": rouge(1.0, "rougeL_f1", 1.0),
    "exact_memorization": log(0.6, 0.5, 0.6, 0.7),
    "extraction_strength": log(0.2, 0.1, 0.2, 0.3),
    "mia_min_k": attack([1.0, 4.0], [3.0, 5.0, 2.0], 5 / 6),
    "privleak": {"agg_value": -66.0},
}
MUSE_METRICS = {
    "forget_verbatim": 0.5, "forget_knowledge": 0.25, "retain_knowledge": 1.0,
    "verbatim_exact_memorization": 0.6, "verbatim_extraction_strength": 0.2,
    "membership_min_k_auc": 5 / 6, "priv_leak": -66.0,
}  # fmt: skip


def edited(*path, value):
    """Return the file with one entry replaced."""
    given = copy.deepcopy(FILE)
    inner = given
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return given


def skipped():
    """Return the file without a forget row's correct answer: the next row's truth ratio is under the row's number."""
    given = edited("forget_Q_A_PARA_Prob", "value_by_index", "0", value=None)
    given["forget_truth_ratio"]["value_by_index"] = by_index(*ratios(CORRECT)[1:])
    return given


def without(*keys):
    return {key: value for key, value in FILE.items() if key not in keys}


def test_metrics_and_rows_are_those_of_the_file(tmp_path):
    path = tmp_path / "retain.json"
    path.write_text(json.dumps(FILE))
    result = read_result(path)
    assert result.convention == "open_unlearning"
    assert result.metrics == METRICS
    assert result.utility_sets == ["retain", "real_authors", "world_facts"]
    first, second = result.sets["forget"].rows
    assert first == {
        "row": 0, "nll": [1.0, 1.5, 2.0, 4.0], "probability": math.exp(-1),
        "log_truth_ratio": pytest.approx(1.5 - 3.0), "rouge_l_recall": 0.3, "generation": "text 0",
        "exact_memorization": 0.5, "extraction_strength": 0.1, "loss": 1.0, "min_k": 1.0, "gradient_norm": 1.0,
    }  # fmt: skip
    # exp(-20) is small beside the 1e-10 that open-unlearning adds, and the row was not scored for memorization.
    assert second["log_truth_ratio"] == pytest.approx(-1.5 - math.log(math.exp(-20) + EPSILON))
    assert "exact_memorization" not in second
    found = result.sets["real_authors"].rows[0]
    assert found["nll"] == [1.0, 1.0, 2.0, 4.0]
    among = math.exp(-1) / (math.exp(-1) + math.exp(-2) + math.exp(-4) + EPSILON)
    assert found["probability"] == pytest.approx(among, rel=1e-12)
    assert result.sets["holdout"].rows[2] == {
        "row": 2, "nll": [5.0], "loss": 5.0, "min_k": 2.0, "gradient_norm": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize(("file", "metrics"), [(FILE, METRICS), (MUSE, MUSE_METRICS)])
def test_a_summary_gives_the_metrics_alone(file, metrics):
    result = parse({key: value["agg_value"] for key, value in file.items()}, "summary")
    assert result.metrics == metrics
    assert all(each.rows == [] for each in result.sets.values())


def test_a_file_of_muse():
    result = parse(MUSE, "file")
    assert result.metrics == MUSE_METRICS
    assert result.sets.keys() == {"forget", "holdout", "verbatim", "forget_questions", "retain_questions"}
    assert result.sets["verbatim"].rows[1] == {
        "row": 1, "rouge_l_f1": 0.5, "generation": "text 1", "exact_memorization": 0.6, "extraction_strength": 0.2,
    }  # fmt: skip
    assert result.sets["forget_questions"].rows[1] == {"row": 1, "rouge_l_f1": 0.5, "generation": "text 1"}
    assert result.sets["forget"].rows == [{"row": 0, "min_k": 1.0}, {"row": 1, "min_k": 4.0}]


def objects():
    entries = FILE["forget_Q_A_PERT_Prob"]["value_by_index"]
    return {
        row: [{"prob": p, "avg_loss": nll} for p, nll in zip(entry["prob"], entry["avg_loss"], strict=True)]
        for row, entry in entries.items()
    }


@pytest.mark.parametrize("given", [
    edited("forget_Q_A_PERT_Prob", "value_by_index", value=objects()),
    without("forget_truth_ratio") | {"forget_Truth_Ratio": FILE["forget_truth_ratio"]},
], ids=["several answers as objects", "both spellings of a truth ratio"])  # fmt: skip
def test_variants_read_the_same(given):
    assert parse(given, "file") == parse(FILE, "file")


def test_probability_among_options_is_made_from_the_losses():
    given = without("ra_Q_A_Prob_normalised")
    assert parse(given, "file").sets["real_authors"].rows == parse(FILE, "file").sets["real_authors"].rows


def test_truth_ratios_without_losses():
    rows = parse(without("forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob"), "file").sets["forget"].rows
    expected = [math.log(each) for each in ratios(CORRECT)]
    assert [row["log_truth_ratio"] for row in rows] == pytest.approx(expected)
    assert [row["nll"] for row in rows] == [[1.0], [0.5]]


def test_a_skipped_row_lacks_what_was_skipped_and_the_next_keeps_its_own():
    first, second = parse(skipped(), "file").sets["forget"].rows
    assert "log_truth_ratio" not in first
    assert first["nll"] == [1.0]
    assert second == parse(FILE, "file").sets["forget"].rows[1]


def test_what_was_not_measured_is_absent():
    result = parse({"forget_quality": {"agg_value": None}, "mia_min_k": {"agg_value": 0.4}}, "file")
    assert result.metrics == {"membership_min_k_auc": 0.4}
    assert result.sets == {}
    assert result.utility_sets == []
    # Retain references hold an object there.
    assert parse({"forget_quality": {"agg_value": {"p": 1.0}}}, "file").metrics == {}
    assert not is_open_unlearning({"status": "finished"})


NOT_FINITE = "must be a finite number (got"


@pytest.mark.parametrize(("given", "line"), [
    (edited("forget_Q_A_PARA_Prob", "value_by_index", value=answers(0.1, [1.5])["value_by_index"]),
     "file, forget: mia_loss, forget has 2 rows and forget_Q_A_PARA_Prob has no row 1"),
    (edited("forget_Q_A_ROUGE", "value_by_index", value={"0": {"rougeL_recall": 0.3}, "7": {}}),
     "file, forget_Q_A_ROUGE has 2 rows and none of them is row 1"),
    (edited("forget_Q_A_Prob", "value_by_index", "1", "avg_loss", value=math.nan),
     f"file, forget_Q_A_Prob, row 1 {NOT_FINITE} nan)"),
    (edited("wf_Q_A_PERT_Prob", "value_by_index", "0", "avg_loss", value=[1.0, math.inf]),
     f"wf_Q_A_PERT_Prob, row 0 {NOT_FINITE} inf)"),
    (edited("forget_truth_ratio", "value_by_index", value=by_index(*ratios(CORRECT)[::-1])),
     "file, forget, row 0 has a truth ratio of"),
    (edited("mia_min_k", "holdout", "value_by_index", "2", "score", value=math.nan),
     f"mia_min_k, holdout, row 2 {NOT_FINITE} nan)"),
    (edited("retain_Q_A_ROUGE", "value_by_index", "0", value={"rouge1_recall": 1.0}),
     "retain_Q_A_ROUGE, row 0 is not what open-unlearning writes (KeyError('rougeL_recall'))"),
    (edited("forget_Q_A_PARA_Prob", "value_by_index", "1", "avg_loss", value=-2.0),
     "file, forget, row 1: correct_nll must be >= 0"),
    (edited("model_utility", "agg_value", value=math.nan), f"file, model_utility {NOT_FINITE} nan)"),
    ({"forget_truth_ratio": log(0.0, 0.5, 0.0)}, "file, forget, row 1 has a truth ratio of 0, which is not above 0"),
    ({"forget_verbmem_ROUGE": log(0.5, 0.5)}, "file, forget_verbmem_ROUGE, row 0 is not what open-unlearning"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(given, line):
    with pytest.raises(InputError) as error:
        parse(given, "file")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "benchmark"),
    [(FILE, "TOFU"), (skipped(), "TOFU"), (MUSE, "MUSE")],
    ids=["TOFU", "skipped", "MUSE"],
)
def test_what_is_written_reads_the_same(given, benchmark, tmp_path):
    result = parse(given, "file")
    paths = write(result, tmp_path / "evals")
    assert [each.name for each in paths] == [f"{benchmark}_EVAL.json", f"{benchmark}_SUMMARY.json"]
    assert read_result(paths[0]) == result
    assert read_result(paths[1]).metrics == result.metrics
    text = paths[0].read_text()
    written = json.loads(text)
    assert text == json.dumps(dict(sorted(written.items())), indent=4)
    assert set(written) == set(given) - {"forget_Q_A_gibberish"}


def test_a_measured_result_reads_the_same(smoke, tmp_path):
    # Losses are far from 18 nats, where the 1e-10 of open-unlearning would show.
    measured = replace(read_result(smoke), convention="open_unlearning")
    write(measured, tmp_path)
    found = read_result(tmp_path / "TOFU_EVAL.json")
    expected = {"forget_truth_ratio", "retain_rouge_l_recall", "forget_extraction_strength"}
    assert expected <= found.metrics.keys()
    assert found.metrics == {name: measured.metrics[name] for name in found.metrics}
    for name in ("forget", "retain"):
        for here, there in zip(found.sets[name].rows, measured.sets[name].rows, strict=True):
            assert {"nll", "log_truth_ratio", "probability", "rouge_l_recall", "generation"} <= here.keys()
            assert here.pop("generation") == there["generation"]
            assert here == {key: pytest.approx(there[key], rel=1e-6, abs=1e-6) for key in here}


def test_written_layout_is_the_one_that_was_read():
    written = evaluation(parse(FILE, "file"))
    for key in (
        "mia_loss",
        "mia_min_k",
        "exact_memorization",
        "extraction_strength",
        "forget_quality",
        "privleak",
    ):
        assert written[key] == FILE[key]
    for key in ("forget_Q_A_Prob", "wf_Q_A_Prob_normalised", "ra_Truth_Ratio", "retain_Q_A_ROUGE"):
        assert written[key]["agg_value"] == FILE[key]["agg_value"]
    for key in ("forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob", "retain_Q_A_Prob", "wf_Q_A_Prob"):
        assert written[key]["value_by_index"] == FILE[key]["value_by_index"]
    mean = sum(math.exp(-each) for row in WRONG for each in row) / 4
    assert written["forget_Q_A_PERT_Prob"]["agg_value"] == pytest.approx(mean)
    assert written["wf_Q_A_Prob"]["agg_value"] == pytest.approx((math.exp(-1.0) + math.exp(-0.5)) / 2)
    for row, entry in FILE["forget_truth_ratio"]["value_by_index"].items():
        assert written["forget_truth_ratio"]["value_by_index"][row]["score"] == pytest.approx(entry["score"])
    entry = {"rougeL_recall": 0.4, "generation": "text 1"}
    assert written["forget_Q_A_ROUGE"]["value_by_index"]["1"] == entry


def test_absent_metrics_are_left_out():
    result = parse(without("model_utility", "mia_min_k", "ra_Q_A_ROUGE", "privleak"), "file")
    assert {"model_utility", "mia_min_k", "ra_Q_A_ROUGE", "privleak"}.isdisjoint(evaluation(result))
    del result.sets["retain"].metrics["truth_ratio"]
    assert "retain_Truth_Ratio" not in evaluation(result)
    assert summary(replace(result, sets={}, metrics={"model_utility": 0.5})) == {"model_utility": 0.5}


def test_a_result_of_muse_is_written_under_its_names():
    result = parse(MUSE, "file")
    # What a measured result has besides has no name there.
    result.sets["forget"].metrics["probability"] = result.metrics["forget_probability"] = 0.5
    written = evaluation(result)
    assert written.keys() == MUSE.keys()
    assert written["forget_verbmem_ROUGE"]["agg_value"] == 0.5
    entry = {"rougeL_f1": 0.25, "generation": "text 0"}
    assert written["forget_verbmem_ROUGE"]["value_by_index"]["0"] == entry
    for key in ("exact_memorization", "extraction_strength", "mia_min_k", "privleak"):
        assert written[key] == MUSE[key]
    assert summary(result) == {key: value["agg_value"] for key, value in MUSE.items()}


def test_numbers_of_another_convention_are_not_written_as_open_unlearnings():
    with pytest.raises(InputError, match="convention 'tofu' are not those of open-unlearning's metrics"):
        evaluation(published("llama2-7b_full"))
