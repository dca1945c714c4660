"""`dipo-pl report` on real run folders: what it prints and writes, and what it refuses in one line."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest

from dipo_pl.metrics.result import EvaluationResult
from dipo_pl.report.contents import read_report
from dipo_pl.report.text import as_text


def figures_of(run: Path) -> dict:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def test_the_table_in_the_terminal(cli, runs, all_runs):
    ended = cli("report", *all_runs)
    assert (ended.code, ended.err) == (0, "")
    head = next(line for line in ended.out.splitlines() if "Model Utility" in line)
    assert head.split("  ")[-1]
    line = next(line for line in ended.out.splitlines() if line.startswith("unlearned-1 "))
    last = figures_of(runs / "unlearned-1")
    assert f"{last['forget_quality_log10_p']:.2f}" in line
    assert f"{last['forget_quality_ks_statistic']:.3f}" in line
    assert f"{last['model_utility']:.3f}" in line
    assert "Convention dipo_pl: all rows" in ended.out
    assert "95% percentile bootstrap" in ended.out


@pytest.mark.parametrize("width", [70, 100])
def test_a_narrow_terminal_gets_the_table_in_blocks(all_runs, width):
    report = read_report(all_runs)
    whole, narrow = as_text(report).splitlines(), as_text(report, width).splitlines()
    lines = [line for line in narrow if line.startswith("unlearned-1 ")]
    assert len(lines) > 1
    assert all(len(line) <= width for line in lines)
    (line,) = (line for line in whole if line.startswith("unlearned-1 "))
    assert [word for each in lines for word in each.split()[2:]] == line.split()[2:]


def test_all_formats_and_pictures_are_written(cli, all_runs):
    ended = cli("report", *all_runs, "--output", "out")
    assert ended.code == 0, ended.err
    written = {path.name for path in Path("out").iterdir()}
    assert written >= {
        "report.html", "report.md", "report.csv", "report.json", "report.tex",
        "trajectory.png", "truth_ratio.png", "membership_min_k.png", "relearning_forget_probability.png",
    }  # fmt: skip
    assert {
        line.removeprefix("wrote out/") for line in ended.out.splitlines() if line.startswith("wrote")
    } == written
    for name in written:
        if name.endswith(".png"):
            assert (Path("out") / name).read_bytes().startswith(b"\x89PNG")


def test_a_run_is_represented_by_the_weights_that_it_exported(cli, runs, copied):
    copied("unlearned-0", manifest=lambda manifest: manifest.update(exported_step=3))
    assert cli("report", "copies/unlearned-0", "--format", "json", "--output", "out").code == 0
    row = next(
        each
        for each in json.loads(Path("out/report.json").read_text())["rows"]
        if each["name"] == "unlearned-0"
    )
    figures = [json.loads(line) for line in (runs / "unlearned-0" / "metrics.jsonl").read_text().splitlines()]
    (chosen,) = (each for each in figures if each["step"] == 3)
    assert row["figures"]["forget_probability"] == chosen["forget_probability"]
    assert chosen["forget_probability"] != figures[-1]["forget_probability"]


def test_another_model_in_the_place_of_the_retain_only_one(cli, runs, copied):
    """A config names runs/ret, and the report is made where that is another model."""
    config = (runs / "unlearned-0" / "config.yaml").read_text()
    unlearned = copied("unlearned-0")
    (unlearned / "config.yaml").write_text(config.replace(f"{runs}/retain-only", f"{runs}/target"))
    ended = cli("report", unlearned)
    assert ended.code == 0
    assert f"left out: {runs}/target is not the model that unlearned-0 was measured against" in ended.err
    assert "retain-only" not in ended.out
    assert "retain-only" in cli("report", runs / "unlearned-0").out


def test_files_of_open_unlearning(cli, runs, copied):
    refused = cli("report", runs / "target", "--format", "open_unlearning", "--output", "out")
    assert refused.code == 2
    assert "open_unlearning" in refused.errors[0]
    copied("target", evaluation=lambda result: result.update(convention="open_unlearning"))
    ended = cli("report", "copies/target", "--format", "open_unlearning", "--output", "out")
    assert ended.code == 0, ended.err
    assert "wrote out/target/TOFU_EVAL.json" in ended.out
    ours, theirs = figures_of(runs / "target"), json.loads(Path("out/target/TOFU_SUMMARY.json").read_text())
    assert theirs["forget_Q_A_Prob"] == ours["forget_probability"]
    assert theirs["model_utility"] == ours["model_utility"]
    assert cli("report", "out/target/TOFU_EVAL.json").code == 0


def test_csv_and_json_hold_all_figures_in_full(cli, runs, all_runs):
    assert cli("report", *all_runs, "--format", "csv,json", "--output", "out").code == 0
    assert {path.name for path in Path("out").iterdir()} == {"report.csv", "report.json"}
    lines = {each["name"]: each for each in csv.DictReader(Path("out/report.csv").read_text().splitlines())}
    content = json.loads(Path("out/report.json").read_text())
    rows = {each["name"]: each["figures"] for each in content["rows"]}
    last = {key: value for key, value in figures_of(runs / "unlearned-0").items() if isinstance(value, float)}
    del last["epoch"]
    assert rows["unlearned-0"] == last
    assert {key: float(lines["unlearned-0"][key]) for key in last} == last
    assert (lines["unlearned-0"]["seed"], lines["unlearned-0"]["convention"]) == ("0", "dipo_pl")
    assert (lines["unlearned-0"]["step"], lines["retain-only"]["forget_quality"]) == ("6", "")
    (run,) = (each for each in content["runs"] if each["name"] == "unlearned-0")
    assert run["manifest"] == json.loads((runs / "unlearned-0" / "manifest.json").read_text())
    assert [each["step"] for each in run["evaluations"]] == [0, 3, 6]
    (group,) = content["seeds"]
    assert group["runs"] == ["unlearned-0", "unlearned-1"]
    assert content["best"]["model_utility"]


def test_markdown_and_latex_mark_the_best_and_escape_names(cli, runs, copied):
    strange = copied("unlearned-1", "a_b|c&d%")
    paths = [runs / "target", runs / "retain-only", runs / "unlearned-0", strange]
    markdown = cli("report", *paths, "--format", "markdown").out
    (line,) = (line for line in markdown.splitlines() if line.startswith(r"| a\_b\|c\&d% |"))
    heads = [
        each.strip()
        for each in next(line for line in markdown.splitlines() if "Model Utility" in line).split("|")
    ]
    utilities = [figures_of(runs / name)["model_utility"] for name in ("unlearned-0", "unlearned-1")]
    cell = line.replace(r"\|", "").split("|")[heads.index("Model Utility")].strip()
    shown = f"{utilities[1]:.3f}"
    assert cell == (f"**{shown}**" if shown == f"{max(utilities):.3f}" else shown)
    assert "**" in markdown
    latex = cli("report", *paths, "--format", "latex").out
    assert r"a\_b|c\&d\%" in latex
    assert r"\textbf{\boldmath $" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1
    columns = latex[latex.index("{l") + 1 :].split("}")[0]
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") + 1 for line in body} == {len(columns)}


def test_one_format_goes_to_standard_output_alone(cli, all_runs):
    assert json.loads(cli("report", *all_runs, "--format", "json").out)["rows"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: RUN"),
        (["nowhere"], "nowhere"),
        (["RUN", "--format", "html"], "--output"),
        (["RUN", "--format", "csv,word", "--output", "out"], "no 'word': choose of html, markdown, csv, json, latex, png"),
        (["RUN", "--format", ",", "--output", "out"], "names nothing"),
        (["RUN", "--output", "file"], "cannot write to --output file"),
        (["RUN", "--retain-only", "nowhere"], "nowhere"),
        (["RUN", "--ouput", "out"], "--ouput"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line(cli, runs, arguments, said):
    Path("file").write_text("")
    ended = cli("report", *[str(runs / "target") if each == "RUN" else each for each in arguments])
    assert ended.code == 2
    assert said in ended.errors[0]
    assert len(ended.err.splitlines()) == 1
    assert ended.out == ""
    assert not Path("out").exists()


def half_an_evaluation(run):
    path = max((run / "evaluation").iterdir())
    path.write_text(path.read_text()[: path.stat().st_size // 2])


def no_last_evaluation(run):
    max((run / "evaluation").iterdir()).unlink()


def half_a_line(run):
    path = run / "metrics.jsonl"
    path.write_text(path.read_text()[:-40])


def no_metrics(run):
    (run / "metrics.jsonl").unlink()


def broken_manifest(run):
    (run / "manifest.json").write_bytes(b"\xff{")


def no_manifest(run):
    (run / "manifest.json").unlink()


def broken_config(run):
    (run / "config.yaml").write_text("a: [1, ")


def a_list_for_a_manifest(run):
    (run / "manifest.json").write_text("[]")


def text_for_a_number(run):
    path = max((run / "evaluation").iterdir())
    content = json.loads(path.read_text())
    content["sets"]["forget"]["rows"][3]["log_truth_ratio"] = "high"
    path.write_text(json.dumps(content))


def nan_for_a_number(run):
    path = max((run / "evaluation").iterdir())
    content = json.loads(path.read_text())
    content["sets"]["forget"]["rows"][3]["log_truth_ratio"] = float("nan")
    path.write_text(json.dumps(content))


def rows_that_are_none(run):
    path = max((run / "evaluation").iterdir())
    content = json.loads(path.read_text())
    content["sets"]["forget"]["rows"] = [1, 2]
    path.write_text(json.dumps(content))


DAMAGE = [
    half_an_evaluation, no_last_evaluation, half_a_line, no_metrics, broken_manifest, no_manifest, broken_config,
    a_list_for_a_manifest, text_for_a_number, nan_for_a_number, rows_that_are_none,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda each: each.__name__)
def test_a_broken_run_is_named_and_left_out_and_the_rest_reported(cli, runs, copied, damage):
    broken = copied("unlearned-1", "broken")
    damage(broken)
    ended = cli("report", runs / "unlearned-0", broken, runs / "retain-only", "--format", "json")
    assert ended.code == 0
    (line,) = ended.err.splitlines()
    assert line.startswith("dipo-pl: left out: ")
    assert str(broken) in line
    content = json.loads(ended.out)
    assert [each["name"] for each in content["runs"]] == ["retain-only", "unlearned-0"]
    assert content["left_out"] == [line.removeprefix("dipo-pl: left out: ")]
    alone = cli("report", broken, "--output", "out")
    assert alone.code == 2
    assert str(broken) in alone.errors[0]
    assert not Path("out").exists()


def test_an_unfinished_run_is_left_out_unless_asked_for(cli, runs, copied):
    unfinished = copied("unlearned-1", "unfinished", manifest=lambda each: each.update(status="running"))
    ended = cli("report", runs / "unlearned-0", unfinished)
    assert ended.code == 0
    assert "unfinished is not finished (status: running)" in ended.err
    ended = cli("report", runs / "unlearned-0", unfinished, "--unfinished")
    assert ended.err == ""
    assert "unfinished: not finished (status: running)" in ended.out


def other_convention(evaluation):
    evaluation["convention"] = "open_unlearning"


def fewer_forget_rows(evaluation):
    evaluation["sets"]["forget"]["rows"].pop()


def other_forget_rows(evaluation):
    evaluation["sets"]["forget"]["fingerprint"] = "0123456789abcdef"


def other_retain_rows(evaluation):
    evaluation["sets"]["retain"]["fingerprint"] = "0123456789abcdef"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_convention, "unlearned-0 follows the convention 'dipo_pl', other 'open_unlearning'"),
        (fewer_forget_rows, "the forget set has 10 rows in unlearned-0 and 9 in other"),
        (other_forget_rows, "their forget rows differ (fingerprint"),
        (other_retain_rows, "their retain rows differ (fingerprint"),
    ],
)
def test_what_is_not_comparable_is_refused_with_both_named(cli, runs, copied, change, said):
    other = copied("unlearned-1", "other", evaluation=change)
    ended = cli("report", runs / "unlearned-0", other, "--output", "out")
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "unlearned-0 and other are not comparable" in ended.errors[0]
    assert said in ended.errors[0]
    assert not Path("out").exists()


def test_an_evaluation_file_stands_beside_runs(cli, runs):
    evaluation = runs / "unlearned-0" / "evaluation" / "step-000003.json"
    content = json.loads(cli("report", runs / "retain-only", evaluation, "--format", "json").out)
    row = content["rows"][1]
    assert (row["name"], row["kind"]) == ("step-000003", "evaluation file")
    assert row["figures"] == EvaluationResult.read(evaluation).metrics


def test_published_results_of_tofu(cli):
    content = json.loads(
        cli("report", "llama2-7b_full", "--retain-only", "llama2-7b_retain90", "--format", "json").out
    )
    by_name = {each["name"]: each["figures"] for each in content["rows"]}
    assert by_name["llama2-7b_full"]["model_utility"] == pytest.approx(0.622677, abs=1e-6)
    assert by_name["llama2-7b_full"]["forget_quality"] == pytest.approx(1.834066e-21, rel=1e-6)
    assert "forget_quality" not in by_name["llama2-7b_retain90"]


def test_the_retain_only_run_that_a_config_names_is_found(cli, runs):
    content = json.loads(cli("report", runs / "unlearned-0", "--format", "json").out)
    assert [(each["name"], each["kind"]) for each in content["runs"]] == [
        ("retain-only", "retain-only"), ("unlearned-0", "unlearned"),
    ]  # fmt: skip


def test_runs_of_one_name_are_told_apart(cli, runs, copied):
    again = copied("unlearned-0")
    content = json.loads(cli("report", runs / "unlearned-0", again, "--format", "json").out)
    names = {each["name"] for each in content["runs"]}
    assert {"runs/unlearned-0", "copies/unlearned-0"} <= names


def test_a_run_given_twice_is_reported_once(cli, runs):
    content = json.loads(cli("report", runs / "target", f"{runs}/../runs/target", "--format", "json").out)
    assert [each["name"] for each in content["runs"]] == ["target"]


def test_utility_made_of_other_parts_is_left_out(cli, runs, copied):
    def drop(content):
        content.pop("retain_rouge_l_recall")

    other = copied("unlearned-1", "other")
    lines = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    drop(lines[-1])
    (other / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    content = json.loads(cli("report", runs / "unlearned-0", other, "--format", "json").out)
    by_name = {each["name"]: each["figures"] for each in content["rows"]}
    assert "model_utility" in by_name["unlearned-0"]
    assert "model_utility" not in by_name["other"]
    assert any(each.startswith("other: Model Utility is left out") for each in content["notes"])


def test_without_matplotlib_the_report_says_what_is_missing(cli, all_runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ended = cli("report", *all_runs, "--output", "out")
    assert ended.code == 0
    assert "pictures need matplotlib: pip install 'dipo-pl[plots]'" in ended.err
    assert not list(Path("out").glob("*.png"))
    page = Path("out/report.html").read_text()
    assert "Pictures need matplotlib" in page
    assert "largest gap D = " in page


def test_quantised_models_stand_below_theirs(cli, runs, tmp_path):
    pytest.importorskip("torchao")
    folder = tmp_path / "runs"
    shutil.copytree(runs / "unlearned-0", folder / "unlearned-0")
    ended = cli("quantize", folder / "unlearned-0")
    assert ended.code == 0, ended.err
    content = json.loads(cli("report", *folder.iterdir(), "--format", "json").out)
    assert [each["name"] for each in content["rows"]][-3:] == [
        "unlearned-0",
        "unlearned-0-int8",
        "unlearned-0-int4",
    ]


def test_nothing_heavy_is_imported_for_the_table(process, runs):
    ended = process("report", runs / "unlearned-0", runs / "retain-only", PYTHONPROFILEIMPORTTIME="1")
    assert ended.code == 0, ended.err
    imported = {line.rpartition("|")[2].strip() for line in ended.err.splitlines()}
    assert not imported & {"torch", "lightning", "transformers", "matplotlib"}
