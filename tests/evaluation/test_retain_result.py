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
from dipo_pl.evaluation.retain_result import check_comparable, comparable_metrics, read_result
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
    assert read_result(run) == read_result(str(run)) == last
    assert read_result(run / "evaluation" / "step-000002.json") == first
    (run / "evaluation" / "step-000006.json").unlink()
    assert "lacks the evaluation " in refusal(run)


def test_a_real_run_is_read(smoke):
    result = read_result(smoke)
    assert result.step == 6
    forget = [row_from(each, "made") for each in fictitious_rows(4)[60:70]]
    check_comparable(result, smoke, "dipo_pl", forget, {})
    with pytest.raises(InputError, match="was evaluated on other forget rows"):
        check_comparable(result, smoke, "dipo_pl", forget[::-1], {})


def test_published_result_by_its_bare_name_or_its_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "llama2-7b_retain90"
    assert read_result(name) == published(name)
    log = resources.files("dipo_pl.evaluation") / "published" / f"{name}.json"
    Path("TOFU_EVAL.json").write_text(log.read_text())
    assert read_result("TOFU_EVAL.json") == published(name)
    Path(name).write_text(result_of().text())
    assert read_result(name) == result_of()


@pytest.mark.parametrize(("theirs", "ours", "same"), [
    ("h", "h", True), ("h", "other", False), ("h", None, False), (None, "h", True), ("no set", "h", True),
])  # fmt: skip
def test_membership_by_other_holdout_rows_is_not_compared(theirs, ours, same):
    sets = {} if theirs == "no set" else {"holdout": SetResult({}, [], theirs)}
    result = result_of(metrics={"forget_probability": 0.5, "membership_min_k_auc": 0.4}, sets=sets)
    assert ("membership_min_k_auc" in comparable_metrics(result, ours)) == same
    assert comparable_metrics(result, ours)["forget_probability"] == 0.5


def test_nothing_there(tmp_path):
    line = refusal(tmp_path / "nowhere")
    assert "nowhere does not exist: give the run folder" in line
    assert line.endswith(f"or one of {', '.join(published_names())}")
    with pytest.raises(InputError, match=r"^relearn\.retain_result .*nowhere does not exist"):
        read_result(tmp_path / "nowhere", "relearn.retain_result")


@pytest.mark.parametrize("status", ["running", "failed", None])
def test_unfinished_run(tmp_path, status):
    run = run_folder(tmp_path / "run", result_of(), status=status)
    assert f"is not the folder of a finished run (status: {status})" in refusal(run)
    assert "is not the folder of a finished run (status: None)" in refusal(tmp_path)


@pytest.mark.parametrize(("value", "shown"), [
    ("Mira Holloway lives at 5 Elm St", "str"), (["Mira"], "str"), ({"Mira": 1}, "dict"), (math.inf, "inf"),
])  # fmt: skip
def test_an_error_quotes_no_text_of_a_row(tmp_path, value, shown):
    content = {
        "convention": "tofu",
        "metrics": {},
        "sets": {"forget": {"fingerprint": "f", "metrics": {}, "rows": [{"odd": value}]}},
    }
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        EvaluationResult.read(tmp_path / "result.json")
    assert f"odd in row 0 of forget is {shown}, no finite number" in str(caught.value)
    assert "Mira" not in str(caught.value)


@pytest.mark.parametrize("empties", [lambda path: path.write_text(""), Path.unlink])
def test_run_without_evaluations(tmp_path, empties):
    run = run_folder(tmp_path / "run")
    empties(run / "metrics.jsonl")
    assert "has no evaluation (metrics.jsonl is missing or empty): evaluate its model" in refusal(run)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"sets": ', "is not an evaluation: it cannot be read (Expecting value"),
        (b"\xff\xfe", "is not an evaluation: it cannot be read ('utf-8' codec"),
        *(
            (content, "is not an evaluation: give one of a run's evaluation files")
            for content in (
                b'{"status": "finished"}', b'{"forget": {"other": 1}}', b'{"step": 6, "model_utility": 0.5}', b"3", b"[1]",
            )
        ),
        (b'{"sets": {}, "metrics": {}}', "does not name its convention, as in older versions"),
        (b'{"sets": {}, "convention": "tofu", "odd": 1}', "is not an evaluation ("),
        (b'{"forget": {"avg_gt_loss": [1.0]}}', ", forget has no avg_paraphrased_loss"),
        (b'{"model_utility": {"agg_value": NaN}}', ", model_utility must be a finite number (got nan)"),
    ],
)  # fmt: skip
def test_file_of_something_else(tmp_path, content, line):
    (tmp_path / "file").write_bytes(content)
    assert line in refusal(tmp_path / "file")


def lacking(row, **values):
    """Return a result whose row has these values alone."""
    found = result_of()
    found.sets["forget"].rows[row] = {"row": row, **values}
    return found


def of_unknown_rows(rows=ROWS):
    found = result_of(rows)
    found.sets["forget"] = replace(found.sets["forget"], fingerprint=None)
    return found


def without_truth_ratios(rows=TEXTS, **changes):
    values = [{"row": row, "nll": [1.0]} for row in range(len(rows))]
    return result_of(sets={"forget": SetResult({}, values, rows_fingerprint(rows))}, **changes)


SETTINGS = {"prompt": "QuestionAnswer", "max_new_tokens": 16, "membership_k": 0.2}
NEWS = {"corpus": "MUSE-News"}


@pytest.mark.parametrize(("result", "rows", "settings"), [
    (result_of(), ROWS, {}),
    (of_unknown_rows(), ROWS, {}),
    # Truth ratios are asked for only where there are wrong answers.
    (without_truth_ratios(), TEXTS, {}),
    (result_of(sets={}, settings=NEWS), TEXTS, NEWS),
    (result_of(settings=SETTINGS), ROWS, {"prompt": "QuestionAnswer", "max_new_tokens": 16}),
    (result_of(settings=SETTINGS), ROWS, {}),
])  # fmt: skip
def test_what_is_comparable(result, rows, settings):
    check_comparable(result, "there", "dipo_pl", rows, settings)


def with_tokens(tokens, prompt):
    forget = replace(result_of().sets["forget"], tokens=tokens)
    return result_of(sets={"forget": forget}, settings={"prompt": prompt})


@pytest.mark.parametrize(("there", "here", "prompt", "line"), [
    ("a" * 64, "a" * 64, "Llama2Chat", None),
    ("a" * 64, "b" * 64, "QuestionAnswer", "was evaluated on other tokens of the forget rows (fingerprint aaaa"),
    (None, "b" * 64, "QuestionAnswer", None),
    (None, "b" * 64, "Llama2Chat", "(prompt Llama2Chat there and QuestionAnswer here)"),
])  # fmt: skip
def test_tokens_count_where_they_are_known_and_prompts_elsewhere(there, here, prompt, line):
    result, settings = with_tokens(there, prompt), {"prompt": "QuestionAnswer"}
    if line is None:
        return check_comparable(result, "there", "dipo_pl", ROWS, settings, tokens=here)
    with pytest.raises(InputError) as error:
        check_comparable(result, "there", "dipo_pl", ROWS, settings, tokens=here)
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("result", "rows", "settings", "line"),
    [
        (
            result_of(convention="tofu"), ROWS, {},
            "follows the convention tofu and this run dipo_pl, whose values mean other things: set "
            "forget_quality.convention to tofu, or give a result of dipo_pl",
        ),
        (result_of(ROWS[:2]), ROWS, {}, "has 2 forget rows and this run 3"),
        (result_of(), ROWS[:2], {}, "has 3 forget rows and this run 2"),
        (
            result_of(ROWS[::-1]), ROWS, {},
            f"was evaluated on other forget rows (fingerprint {rows_fingerprint(ROWS[::-1])[:12]}, here "
            f"{rows_fingerprint(ROWS)[:12]})",
        ),
        (lacking(1, nll=[1.0]), ROWS, {}, "has no truth ratio of forget row 1: evaluate with wrong answers"),
        (lacking(2, log_truth_ratio=math.nan), ROWS, {}, "truth ratio of forget row 2 must be a finite number (got nan)"),
        (without_truth_ratios(ROWS), ROWS, {}, "has no truth ratio of forget row 0"),
        (result_of(sets={}), ROWS, {}, "has no forget rows: give a result with every row's truth ratio"),
        (result_of(sets={"forget": SetResult({}, [])}), ROWS, {}, "has no forget rows"),
        (without_truth_ratios(TEXTS[::-1]), TEXTS, {}, "was evaluated on other forget rows"),
        (without_truth_ratios(TEXTS[:2]), TEXTS, {}, "has 2 forget rows"),
        (result_of(sets={}, settings=NEWS), TEXTS, {}, "not known to be the same (here unnamed, there MUSE-News)"),
        (result_of(sets={}), TEXTS, NEWS, "not known to be the same (here MUSE-News, there unnamed)"),
        (
            result_of(sets={}, settings=NEWS), TEXTS, {"corpus": "MUSE-Books"},
            "(corpus MUSE-News there and MUSE-Books here)",
        ),
        (result_of(sets={}, settings=NEWS), ROWS, NEWS, "has no forget rows: give a result with every row's truth ratio"),
        (
            result_of(settings=SETTINGS), ROWS, {"max_new_tokens": 16, "membership_k": 0.4},
            "was evaluated with another setting (membership_k 0.2 there and 0.4 here",
        ),
    ],
)  # fmt: skip
def test_what_is_not_comparable_is_named(result, rows, settings, line):
    with pytest.raises(InputError) as error:
        check_comparable(result, "there", "dipo_pl", rows, settings, "relearn.retain_result")
    assert str(error.value).startswith("relearn.retain_result there ") or "there, truth ratio" in str(
        error.value
    )
    assert line in str(error.value)
    assert "\n" not in str(error.value)
