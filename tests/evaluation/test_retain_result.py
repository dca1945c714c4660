"""What a retain result can be given as, and every reason to refuse one."""

import json
import math
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from dipo_pl.data_modules.fictitious_authors import fictitious_rows
from dipo_pl.data_modules.row_files import row_from
from dipo_pl.errors import InputError
from dipo_pl.evaluation.published_results import published, published_names
from dipo_pl.evaluation.retain_result import check_comparable, read_result
from dipo_pl.metrics.result import EvaluationResult, SetResult
from dipo_pl.rows import Row
from dipo_pl.storage.fingerprints import rows_fingerprint

ROWS = [
    Row((("user", f"Who wrote {each}?"),), f"Author {each}.", wrong_answers=("Nobody.",)) for each in range(3)
]
TEXTS = [Row((), f"Article {each}.") for each in range(3)]
LOG_RATIOS = [0.5, -0.25, 1.0]


def result_of(rows=ROWS, **changes):
    values = [
        {"row": row, "nll": [1.0], "log_truth_ratio": each}
        for row, each in enumerate(LOG_RATIOS[: len(rows)])
    ]
    forget = SetResult({"truth_ratio": 0.5}, values, rows_fingerprint(rows))
    made = EvaluationResult("dipo_pl", {"forget_truth_ratio": 0.5}, {"forget": forget}, epoch=1.0, step=6)
    return replace(made, **changes)


def run_folder(path: Path, *results: EvaluationResult, status: str = "finished") -> Path:
    (path / "evaluation").mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps({"status": status}))
    lines = [json.dumps({"step": each.step} | each.metrics) + "\n" for each in results]
    (path / "metrics.jsonl").write_text("".join(lines))
    for each in results:
        (path / "evaluation" / f"step-{each.step:06d}.json").write_text(each.text())
    return path


def refusal(path) -> str:
    with pytest.raises(InputError) as error:
        read_result(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"forget_quality.retain_result {path}")
    return str(error.value)


def test_last_evaluation_of_a_run_and_one_of_its_files(tmp_path):
    first, last = result_of(step=2, metrics={"model_utility": 0.25}), result_of()
    run = run_folder(tmp_path / "run", first, last)
    assert read_result(run) == last
    assert read_result(str(run)) == last
    assert read_result(run / "evaluation" / "step-000002.json") == first


def test_a_real_run_is_read(smoke):
    result = read_result(smoke)
    assert result.step == 6
    forget = [row_from(each, "made") for each in fictitious_rows(4)[60:70]]
    check_comparable(result, smoke, "dipo_pl", forget, {})
    with pytest.raises(InputError, match="was evaluated on other forget rows"):
        check_comparable(result, smoke, "dipo_pl", forget[::-1], {})


def test_published_result_by_its_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_result("llama2-7b_retain90") == published("llama2-7b_retain90")
    Path("llama2-7b_retain90").write_text(result_of().text())
    assert read_result("llama2-7b_retain90") == result_of()


def test_reduced_log_is_told_by_its_content(tmp_path):
    log = resources.files("dipo_pl.evaluation") / "published" / "llama2-7b_retain90.json"
    (tmp_path / "TOFU_EVAL.json").write_text(log.read_text())
    assert read_result(tmp_path / "TOFU_EVAL.json") == published("llama2-7b_retain90")


def test_nothing_there(tmp_path):
    line = refusal(tmp_path / "nowhere")
    assert "nowhere does not exist: give the run folder" in line
    assert line.endswith(f"or one of {', '.join(published_names())}")


@pytest.mark.parametrize("status", ["running", "failed"])
def test_unfinished_run(tmp_path, status):
    run = run_folder(tmp_path / "run", result_of(), status=status)
    assert f"is not the folder of a finished run (status: {status})" in refusal(run)


def test_folder_that_is_no_run(tmp_path):
    assert "is not the folder of a finished run (status: None)" in refusal(tmp_path)


@pytest.mark.parametrize("empties", [lambda path: path.write_text(""), Path.unlink])
def test_run_that_measured_nothing(tmp_path, empties):
    run = run_folder(tmp_path / "run")
    empties(run / "metrics.jsonl")
    assert "is a run without evaluations (metrics.jsonl has no line): evaluate its model" in refusal(run)


def test_run_without_its_last_evaluation_file(tmp_path):
    run = run_folder(tmp_path / "run", result_of())
    (run / "evaluation" / "step-000006.json").unlink()
    assert "lacks the evaluation " in refusal(run)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"sets": ', "is not an evaluation: it cannot be read (Expecting value"),
        (b"\xff\xfe", "is not an evaluation: it cannot be read ('utf-8' codec"),
        (b'{"status": "finished"}', "is not an evaluation: give one of a run's evaluation files"),
        (b'{"forget": {"other": 1}}', "is not an evaluation: give one of a run's evaluation files"),
        (b'{"step": 6, "model_utility": 0.5}', "is not an evaluation: give one of a run's evaluation files"),
        (b"3", "is not an evaluation: give one of a run's evaluation files"),
        (b"[1, 2]", "is not an evaluation: give one of a run's evaluation files"),
        (b'{"sets": {}, "metrics": {}}', "does not name its convention, as in older versions"),
        (b'{"sets": {}, "convention": "tofu", "odd": 1}', "is not an evaluation ("),
        (b'{"forget": {"avg_gt_loss": [1.0]}}', ", forget has no avg_paraphrased_loss"),
        (b'{"model_utility": {"agg_value": NaN}}', ", model_utility must be a finite number (got nan)"),
    ],
)
def test_file_of_something_else(tmp_path, content, line):
    (tmp_path / "file").write_bytes(content)
    assert line in refusal(tmp_path / "file")


def test_key_of_the_caller_is_named(tmp_path):
    with pytest.raises(InputError, match=r"^relearn\.retain_result .*nowhere does not exist"):
        read_result(tmp_path / "nowhere", "relearn.retain_result")
    with pytest.raises(InputError, match=r"^relearn\.retain_result there follows the convention dipo_pl"):
        check_comparable(result_of(), "there", "tofu", ROWS, {}, "relearn.retain_result")


def test_same_rows_measured_the_same_way_are_comparable():
    check_comparable(result_of(), "there", "dipo_pl", ROWS, {})
    unknown = result_of()
    unknown.sets["forget"] = replace(unknown.sets["forget"], fingerprint=None)
    check_comparable(unknown, "there", "dipo_pl", ROWS, {})


def lacking(row, **values):
    """A result whose row has these values alone."""
    found = result_of()
    found.sets["forget"].rows[row] = {"row": row, **values}
    return found


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (
            result_of(convention="tofu"),
            "follows the convention tofu and this run dipo_pl, whose values mean other things: set "
            "forget_quality.convention to tofu, or give a result of dipo_pl",
        ),
        (result_of(ROWS[:2]), "has 2 forget rows and this run 3"),
        (
            result_of(ROWS[::-1]),
            f"was evaluated on other forget rows (fingerprint {rows_fingerprint(ROWS[::-1])[:12]}, here "
            f"{rows_fingerprint(ROWS)[:12]})",
        ),
        (lacking(1, nll=[1.0]), "has no truth ratio of forget row 1: evaluate with wrong answers"),
        (
            lacking(2, log_truth_ratio=math.nan),
            "truth ratio of forget row 2 must be a finite number (got nan)",
        ),
        (result_of(sets={}), "has no forget rows: give a result with every row's truth ratio"),
        (result_of(sets={"forget": SetResult({}, [])}), "has no forget rows"),
    ],
)
def test_what_is_not_comparable_is_named(result, line):
    with pytest.raises(InputError) as error:
        check_comparable(result, "there", "dipo_pl", ROWS, {})
    assert str(error.value).startswith("forget_quality.retain_result there")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def without_truth_ratios(rows=TEXTS, **changes):
    values = [{"row": row, "nll": [1.0]} for row in range(len(rows))]
    return result_of(sets={"forget": SetResult({}, values, rows_fingerprint(rows))}, **changes)


def test_truth_ratios_are_asked_for_only_where_there_are_wrong_answers():
    check_comparable(without_truth_ratios(), "there", "dipo_pl", TEXTS, {})
    with pytest.raises(InputError, match="there has no truth ratio of forget row 0"):
        check_comparable(without_truth_ratios(ROWS), "there", "dipo_pl", ROWS, {})


def test_without_wrong_answers_rows_must_be_the_same_all_the_same():
    for rows, line in ((TEXTS[::-1], "was evaluated on other forget rows"), (TEXTS[:2], "has 2 forget rows")):
        with pytest.raises(InputError, match=line):
            check_comparable(without_truth_ratios(rows), "there", "dipo_pl", TEXTS, {})


def test_figures_without_rows_need_a_corpus_in_common():
    figures = result_of(sets={}, settings={"corpus": "MUSE-News"})
    check_comparable(figures, "there", "dipo_pl", TEXTS, {"corpus": "MUSE-News"})
    refused = {
        "its corpus is not known to be the same (here unnamed, there MUSE-News)": (figures, TEXTS, {}),
        "its corpus is not known to be the same (here MUSE-News, there unnamed)": (
            result_of(sets={}), TEXTS, {"corpus": "MUSE-News"},
        ),
        "(corpus MUSE-News there and MUSE-Books here)": (figures, TEXTS, {"corpus": "MUSE-Books"}),
        "has no forget rows: give a result with every row's truth ratio": (figures, ROWS, {"corpus": "MUSE-News"}),
    }  # fmt: skip
    for line, (result, rows, settings) in refused.items():
        with pytest.raises(InputError) as error:
            check_comparable(result, "there", "dipo_pl", rows, settings)
        assert line in str(error.value)
        assert "\n" not in str(error.value)


def test_more_rows_than_are_measured():
    with pytest.raises(InputError, match="has 3 forget rows and this run 2"):
        check_comparable(result_of(), "there", "dipo_pl", ROWS[:2], {})


def test_settings_that_change_figures():
    made = replace(
        result_of(), settings={"prompt": "QuestionAnswer", "max_new_tokens": 16, "membership_k": 0.2}
    )
    check_comparable(made, "there", "dipo_pl", ROWS, {"prompt": "QuestionAnswer", "max_new_tokens": 16})
    check_comparable(made, "there", "dipo_pl", ROWS, {})
    with pytest.raises(
        InputError, match=r"there was evaluated with another setting \(membership_k 0\.2 there and 0\.4 here"
    ):
        check_comparable(made, "there", "dipo_pl", ROWS, {"max_new_tokens": 16, "membership_k": 0.4})
