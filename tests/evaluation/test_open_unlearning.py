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


def answers(losses):
    return {
        str(row): {"prob": math.exp(-each), "avg_loss": each}
        if isinstance(each, float)
        else {"prob": [math.exp(-one) for one in each], "avg_loss": each}
        for row, each in enumerate(losses)
    }


def by_index(values, name="score"):
    return {str(row): {name: each} for row, each in enumerate(values)}


def ratios(correct):
    return [
        math.exp(-sum(wrong) / 2) / (math.exp(-right) + EPSILON)
        for right, wrong in zip(correct, WRONG, strict=True)
    ]


def attack(forget, holdout, auc):
    sides = {"forget": forget, "holdout": holdout}
    return {
        **{
            name: {"agg_value": sum(each) / len(each), "value_by_index": by_index(each)}
            for name, each in sides.items()
        },
        "auc": auc,
        "agg_value": auc,
    }


def options(prefix):
    among = [
        math.exp(-true) / (math.exp(-true) + sum(math.exp(-each) for each in wrong) + EPSILON)
        for true, wrong in zip(ORIGINAL, WRONG, strict=True)
    ]
    return {
        f"{prefix}_Q_A_Prob": {"agg_value": 0.49, "value_by_index": answers(ORIGINAL)},
        f"{prefix}_Q_A_PERT_Prob": {"agg_value": 0.2, "value_by_index": answers(WRONG)},
        f"{prefix}_Q_A_Prob_normalised": {"agg_value": 0.51, "value_by_index": by_index(among, "prob")},
        f"{prefix}_Q_A_ROUGE": {"agg_value": 0.9, "value_by_index": by_index([0.8, 1.0], "rougeL_recall")},
        f"{prefix}_Truth_Ratio": {"agg_value": 0.41, "value_by_index": by_index(ratios(ORIGINAL))},
    }


def free(prefix, ratio):
    return {
        f"{prefix}_Q_A_Prob": {"agg_value": 0.48, "value_by_index": answers(ORIGINAL)},
        f"{prefix}_Q_A_PARA_Prob": {"agg_value": 0.11, "value_by_index": answers(CORRECT)},
        f"{prefix}_Q_A_PERT_Prob": {"agg_value": 0.2, "value_by_index": answers(WRONG)},
        f"{prefix}_Q_A_ROUGE": {
            "agg_value": 0.35,
            "value_by_index": {
                str(row): {
                    "rouge1_recall": 0.9, "rougeL_f1": 0.8, "rougeL_recall": recall,
                    "input": "user ...", "ground_truth": "A.", "generation": f"text {row}",
                }
                for row, recall in enumerate([0.3, 0.4])
            },
        },
        ratio: {"agg_value": 0.42, "value_by_index": by_index(ratios(CORRECT))},
    }  # fmt: skip


FILE = {
    **free("forget", "forget_truth_ratio"),
    **free("retain", "retain_Truth_Ratio"),
    **options("ra"),
    **options("wf"),
    "exact_memorization": {"agg_value": 0.6, "value_by_index": by_index([0.5, None])},
    "extraction_strength": {"agg_value": 0.15, "value_by_index": by_index([0.1, 0.2])},
    "mia_loss": attack(ORIGINAL, [3.0, 4.0, 5.0], 1.0),
    "mia_min_k": attack([1.0, 4.0], [3.0, 5.0, 2.0], 5 / 6),
    "mia_gradnorm": attack([1.0, 2.0], [3.0, 5.0, 2.0], 0.9),
    "forget_quality": {"agg_value": 1e-5},
    "privleak": {"agg_value": -66.0},
    "model_utility": {"agg_value": 0.55},
    "forget_Q_A_gibberish": {"agg_value": 0.9, "value_by_index": by_index([0.9, 0.9])},
}

FIGURES = {
    "forget_probability": 0.48, "forget_rouge_l_recall": 0.35, "forget_truth_ratio": 0.42,
    "retain_probability": 0.48, "retain_rouge_l_recall": 0.35, "retain_truth_ratio": 0.42,
    "real_authors_probability": 0.51, "real_authors_rouge_l_recall": 0.9, "real_authors_truth_ratio": 0.41,
    "world_facts_probability": 0.51, "world_facts_rouge_l_recall": 0.9, "world_facts_truth_ratio": 0.41,
    "forget_exact_memorization": 0.6, "forget_extraction_strength": 0.15,
    "membership_loss_auc": 1.0, "membership_min_k_auc": 5 / 6, "membership_gradient_norm_auc": 0.9,
    "forget_quality": 1e-5, "forget_quality_log10_p": pytest.approx(-5.0), "priv_leak": -66.0, "model_utility": 0.55,
}  # fmt: skip


def edited(*path, value):
    """The file with one entry replaced."""
    given = copy.deepcopy(FILE)
    inner = given
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return given


def without(*keys):
    return {key: value for key, value in FILE.items() if key not in keys}


def test_figures_and_rows_are_those_of_the_file(tmp_path):
    path = tmp_path / "retain.json"
    path.write_text(json.dumps(FILE))
    result = read_result(path)
    assert result.convention == "open_unlearning"
    assert result.metrics == FIGURES
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
    options = result.sets["real_authors"].rows[0]
    assert options["nll"] == [1.0, 1.0, 2.0, 4.0]
    assert options["probability"] == pytest.approx(
        math.exp(-1) / (math.exp(-1) + math.exp(-2) + math.exp(-4) + EPSILON), rel=1e-12
    )
    assert result.sets["holdout"].rows[2] == {
        "row": 2, "nll": [5.0], "loss": 5.0, "min_k": 2.0, "gradient_norm": 2.0,
    }  # fmt: skip


def test_summary_gives_the_figures_alone():
    given = {key: value["agg_value"] for key, value in FILE.items()}
    result = parse(given, "TOFU_SUMMARY.json")
    assert result.metrics == FIGURES
    assert result.sets["forget"].metrics["extraction_strength"] == 0.15
    assert all(each.rows == [] for each in result.sets.values())


def test_probability_among_options_is_made_from_the_losses():
    given = without("ra_Q_A_Prob_normalised")
    assert parse(given, "file").sets["real_authors"].rows == parse(FILE, "file").sets["real_authors"].rows


def test_several_answers_as_a_list_of_objects():
    entries = FILE["forget_Q_A_PERT_Prob"]["value_by_index"]
    objects = {
        row: [{"prob": p, "avg_loss": nll} for p, nll in zip(entry["prob"], entry["avg_loss"], strict=True)]
        for row, entry in entries.items()
    }
    given = edited("forget_Q_A_PERT_Prob", "value_by_index", value=objects)
    assert parse(given, "file") == parse(FILE, "file")


def test_both_spellings_of_a_truth_ratio():
    given = without("forget_truth_ratio") | {"forget_Truth_Ratio": FILE["forget_truth_ratio"]}
    assert parse(given, "file") == parse(FILE, "file")


def test_truth_ratios_without_losses():
    result = parse(without("forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob"), "file")
    rows = result.sets["forget"].rows
    assert [row["log_truth_ratio"] for row in rows] == pytest.approx(
        [math.log(each) for each in ratios(CORRECT)]
    )
    assert [row["nll"] for row in rows] == [[1.0], [0.5]]


def test_a_skipped_row_lacks_what_was_skipped_and_the_next_keeps_its_own():
    """open-unlearning then puts the second row's truth ratio under the first row's number."""
    given = edited("forget_Q_A_PARA_Prob", "value_by_index", "0", value=None)
    given["forget_truth_ratio"]["value_by_index"] = by_index(ratios(CORRECT)[1:])
    first, second = parse(given, "file").sets["forget"].rows
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


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            edited("forget_Q_A_PARA_Prob", "value_by_index", value=answers([1.5])),
            "TOFU_EVAL.json, forget: mia_loss, forget has 2 rows and forget_Q_A_PARA_Prob has no row 1",
        ),
        (
            edited("forget_Q_A_ROUGE", "value_by_index", value={"0": {"rougeL_recall": 0.3}, "7": {}}),
            "TOFU_EVAL.json, forget_Q_A_ROUGE has 2 rows and none of them is row 1",
        ),
        (
            edited("forget_Q_A_Prob", "value_by_index", "1", "avg_loss", value=math.nan),
            "TOFU_EVAL.json, forget_Q_A_Prob, row 1 must be a finite number (got nan)",
        ),
        (
            edited("wf_Q_A_PERT_Prob", "value_by_index", "0", "avg_loss", value=[1.0, math.inf]),
            "wf_Q_A_PERT_Prob, row 0 must be a finite number (got inf)",
        ),
        (
            edited("forget_truth_ratio", "value_by_index", value=by_index(ratios(CORRECT)[::-1])),
            "TOFU_EVAL.json, forget, row 0 has a truth ratio of",
        ),
        (
            edited("mia_min_k", "holdout", "value_by_index", "2", "score", value=math.nan),
            "mia_min_k, holdout, row 2 must be a finite number (got nan)",
        ),
        (
            edited("retain_Q_A_ROUGE", "value_by_index", "0", value={"rouge1_recall": 1.0}),
            "retain_Q_A_ROUGE, row 0 is not what open-unlearning writes (KeyError('rougeL_recall'))",
        ),
        (
            edited("forget_Q_A_PARA_Prob", "value_by_index", "1", "avg_loss", value=-2.0),
            "TOFU_EVAL.json, forget, row 1: correct_nll must be >= 0",
        ),
        (
            edited("model_utility", "agg_value", value=math.nan),
            "TOFU_EVAL.json, model_utility must be a finite number (got nan)",
        ),
        (
            {"forget_truth_ratio": {"agg_value": 0.0, "value_by_index": by_index([0.5, 0.0])}},
            "TOFU_EVAL.json, forget, row 1 has a truth ratio of 0, which is not above 0",
        ),
    ],
)
def test_what_cannot_be_read_is_named(given, line):
    with pytest.raises(InputError) as error:
        parse(given, "TOFU_EVAL.json")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_written_reads_the_same(tmp_path):
    result = parse(FILE, "file")
    write(result, tmp_path / "evals")
    assert read_result(tmp_path / "evals" / "TOFU_EVAL.json") == result
    assert read_result(tmp_path / "evals" / "TOFU_SUMMARY.json").metrics == result.metrics
    text = (tmp_path / "evals" / "TOFU_EVAL.json").read_text()
    written = json.loads(text)
    assert text == json.dumps(dict(sorted(written.items())), indent=4)
    assert set(written) == set(FILE) - {"forget_Q_A_gibberish"}


def test_a_measured_result_reads_the_same(smoke, tmp_path):
    # Losses are far from 18 nats, where the 1e-10 of open-unlearning would show.
    measured = replace(read_result(smoke), convention="open_unlearning")
    write(measured, tmp_path)
    found = read_result(tmp_path / "TOFU_EVAL.json")
    assert {
        "forget_truth_ratio",
        "retain_rouge_l_recall",
        "forget_extraction_strength",
    } <= found.metrics.keys()
    assert found.metrics == {name: measured.metrics[name] for name in found.metrics}
    for name in ("forget", "retain"):
        for here, there in zip(found.sets[name].rows, measured.sets[name].rows, strict=True):
            assert here == {
                key: pytest.approx(there[key], rel=1e-6, abs=1e-6) if key != "generation" else there[key]
                for key in here
            }
            assert {"nll", "log_truth_ratio", "probability", "rouge_l_recall", "generation"} <= here.keys()


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
    assert written["forget_Q_A_PERT_Prob"]["agg_value"] == pytest.approx(
        sum(math.exp(-each) for row in WRONG for each in row) / 4
    )
    assert written["wf_Q_A_Prob"]["agg_value"] == pytest.approx((math.exp(-1.0) + math.exp(-0.5)) / 2)
    for row, entry in FILE["forget_truth_ratio"]["value_by_index"].items():
        assert written["forget_truth_ratio"]["value_by_index"][row]["score"] == pytest.approx(entry["score"])
    assert written["forget_Q_A_ROUGE"]["value_by_index"]["1"] == {
        "rougeL_recall": 0.4,
        "generation": "text 1",
    }


def test_a_result_with_a_skipped_row_reads_the_same(tmp_path):
    given = edited("forget_Q_A_PARA_Prob", "value_by_index", "0", value=None)
    given["forget_truth_ratio"]["value_by_index"] = by_index(ratios(CORRECT)[1:])
    result = parse(given, "file")
    write(result, tmp_path)
    assert read_result(tmp_path / "TOFU_EVAL.json") == result


def test_absent_figures_are_left_out():
    result = parse(without("model_utility", "mia_min_k", "ra_Q_A_ROUGE", "privleak"), "file")
    assert {"model_utility", "mia_min_k", "ra_Q_A_ROUGE", "privleak"}.isdisjoint(evaluation(result))
    del result.sets["retain"].metrics["truth_ratio"]
    assert "retain_Truth_Ratio" not in evaluation(result)
    assert summary(replace(result, sets={}, metrics={"model_utility": 0.5})) == {"model_utility": 0.5}


def rouge(f1s, generations):
    """As open-unlearning writes a metric of ROUGE whose rouge_type is rougeL_f1."""
    return {
        "agg_value": sum(f1s) / len(f1s),
        "value_by_index": {
            str(row): {
                "rouge1_recall": 0.9, "rougeL_f1": f1, "rougeL_recall": 0.7,
                "input": "...", "ground_truth": "A.", "generation": said,
            }
            for row, (f1, said) in enumerate(zip(f1s, generations, strict=True))
        },
    }  # fmt: skip


MUSE = {
    "forget_verbmem_ROUGE": rouge([0.25, 0.5, 0.75], ["it went", "on", "so"]),
    "forget_knowmem_ROUGE": rouge([0.0, 0.5], ["Rome", "Oslo"]),
    "retain_knowmem_ROUGE": rouge([1.0], ["Paris"]),
    "exact_memorization": {"agg_value": 0.6, "value_by_index": by_index([0.5, 0.6, 0.7])},
    "extraction_strength": {"agg_value": 0.2, "value_by_index": by_index([0.1, 0.2, 0.3])},
    "mia_min_k": attack([1.0, 4.0], [3.0, 5.0, 2.0], 5 / 6),
    "privleak": {"agg_value": -66.0},
}
MUSE_FIGURES = {
    "forget_verbatim": 0.5, "forget_knowledge": 0.25, "retain_knowledge": 1.0,
    "verbatim_exact_memorization": 0.6, "verbatim_extraction_strength": 0.2,
    "membership_min_k_auc": 5 / 6, "priv_leak": -66.0,
}  # fmt: skip


def test_a_file_of_muse():
    result = parse(MUSE, "file")
    assert result.metrics == MUSE_FIGURES
    assert result.sets.keys() == {"forget", "holdout", "verbatim", "forget_questions", "retain_questions"}
    assert result.sets["verbatim"].rows[1] == {
        "row": 1, "rouge_l_f1": 0.5, "generation": "on", "exact_memorization": 0.6, "extraction_strength": 0.2,
    }  # fmt: skip
    assert result.sets["forget_questions"].rows[1] == {"row": 1, "rouge_l_f1": 0.5, "generation": "Oslo"}
    assert result.sets["forget"].rows == [{"row": 0, "min_k": 1.0}, {"row": 1, "min_k": 4.0}]
    assert parse({key: value["agg_value"] for key, value in MUSE.items()}, "file").metrics == MUSE_FIGURES
    with pytest.raises(
        InputError, match=r"file, forget_verbmem_ROUGE, row 0 is not what open-unlearning writes"
    ):
        parse({"forget_verbmem_ROUGE": {"agg_value": 0.5, "value_by_index": by_index([0.5])}}, "file")


def test_a_result_of_muse_is_written_under_its_names(tmp_path):
    result = parse(MUSE, "file")
    # What a measured result has besides has no name there.
    result.sets["forget"].metrics["probability"] = result.metrics["forget_probability"] = 0.5
    paths = write(result, tmp_path)
    assert [each.name for each in paths] == ["MUSE_EVAL.json", "MUSE_SUMMARY.json"]
    written, short = (json.loads(each.read_text()) for each in paths)
    assert written.keys() == MUSE.keys()
    assert written["forget_verbmem_ROUGE"] == {
        "agg_value": 0.5,
        "value_by_index": {
            "0": {"rougeL_f1": 0.25, "generation": "it went"},
            "1": {"rougeL_f1": 0.5, "generation": "on"},
            "2": {"rougeL_f1": 0.75, "generation": "so"},
        },
    }
    for key in ("exact_memorization", "extraction_strength", "mia_min_k", "privleak"):
        assert written[key] == MUSE[key]
    assert short == {key: value["agg_value"] for key, value in MUSE.items()}
    assert read_result(paths[0]) == parse(MUSE, "file")


def test_numbers_of_another_convention_are_not_written_as_open_unlearnings():
    with pytest.raises(InputError, match="convention 'tofu' are not those of open-unlearning's metrics"):
        evaluation(published("llama2-7b_full"))
