"""`dipo-pl report` on real run folders: what it prints and writes, and what it refuses in one line."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
from sample_runs import alter, forgotten

from dipo_pl.report.formats import as_text


def records_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_table_in_the_terminal(cli, runs, all_runs):
    ended = cli("report", *all_runs)
    assert (ended.code, ended.err) == (0, "")
    head = next(line for line in ended.out.splitlines() if "Model Utility" in line)
    line = next(line for line in ended.out.splitlines() if line.startswith("unlearned-1 "))
    last = records_of(runs / "unlearned-1")[-1]
    assert head.split()[0] == "model"
    assert f"{last['forget_quality_log10_p']:.2f}" in line
    assert f"{last['forget_quality_ks_statistic']:.3f}" in line
    assert f"{last['model_utility']:.3f}" in line
    assert "Convention dipo_pl: all rows" in ended.out
    assert "95% percentile bootstrap" in ended.out


@pytest.mark.parametrize("width", [70, 100])
def test_a_narrow_terminal_gets_the_table_in_blocks(report, width, cli, all_runs, monkeypatch):
    whole, narrow = as_text(report).splitlines(), as_text(report, width)
    lines = [line for line in narrow.splitlines() if line.startswith("unlearned-1 ")]
    assert len(lines) > 1
    assert all(len(line) <= width for line in lines)
    (line,) = (line for line in whole if line.startswith("unlearned-1 "))
    labels = 2 + len(report.results.rows[-1].standing.split())
    assert [word for each in lines for word in each.split()[labels:]] == line.split()[labels:]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli("report", *all_runs).out == narrow


@pytest.mark.parametrize("texts", ["none", "redacted", None, "full"])
def test_texts_of_rows_are_in_no_format_unless_asked_for(cli, runs, copied, texts):
    def change(evaluation):
        evaluation["convention"] = "open_unlearning"
        for name, each in evaluation["sets"].items():
            for row in each["rows"]:
                row |= {
                    "question": f"Who is Zebrafinch {name}?",
                    "answers": ["Quokka Narwhal sang."],
                }
                row["generation"] = "It was Quokka Narwhal."

    run = copied("unlearned-0", evaluation=change)
    for path in (run / "evaluation").iterdir():
        alter(path, change)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(f"{runs}/retain-only", "nowhere"))
    formats = ("--format", "html,markdown,csv,json,latex,png,open_unlearning", "--output", "out")
    options = () if texts is None else ("--texts", texts)
    ended = cli("report", run, *options, *formats)
    assert ended.code == 0, ended.err
    written = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert len(written) > 6
    said = {
        (word, path.suffix)
        for path, content in {**written, Path("terminal.txt"): ended.out.encode()}.items()
        for word in ("Zebrafinch", "Quokka", "Narwhal")
        if word.encode() in content
    }
    page = Path("out/report.html").read_text()
    (leaks,) = json.loads(Path("out/report.json").read_text())["leaks"]
    assert leaks["rows"][0]["leaked_words"] == 2
    if texts == "full":
        assert {("Quokka", ".html"), ("Zebrafinch", ".html"), ("Quokka", ".json")} <= said
        assert "<mark>Quokka Narwhal</mark>" in page
        assert "left out" not in ended.out
    else:
        assert said == set()
        assert "Questions, true answers and generated answers are left out" in page
        assert "--texts full" in ended.out
        assert page.count("2 shared words") == (0 if texts == "none" else 2 * 10)


def test_a_value_of_a_row_is_in_no_message(cli, runs, copied):
    broken = copied("unlearned-1", "broken")
    alter(broken / EVALUATION, lambda content: content["sets"]["forget"]["rows"][3].update(answers="Quokka"))
    failed = copied(
        "unlearned-1", "failed", manifest=lambda each: each.update(status="failed: ValueError: Quokka")
    )
    ended = cli("report", runs / "unlearned-0", broken, failed)
    assert ended.err.count("left out") == 2
    assert "Quokka" not in ended.err
    ended = cli("report", runs / "unlearned-0", broken, failed, "--unfinished", "--format", "json")
    assert "answers of forget row 3 must not be a str" in ended.err
    assert "Quokka" not in ended.out + ended.err
    assert "not finished (status: failed)" in ended.out


def test_all_formats_and_plots_are_written(cli, all_runs):
    ended = cli("report", *all_runs, "--output", "out")
    assert ended.code == 0, ended.err
    written = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert written.keys() >= {
        "report.html", "report.md", "report.csv", "report.json", "report.tex",
        "trajectory.png", "truth_ratio.png", "membership_min_k.png", "relearning_forget_probability.png",
    }  # fmt: skip
    said = {line.removeprefix("wrote out/") for line in ended.out.splitlines() if line.startswith("wrote")}
    assert said == written.keys()
    assert all(text.startswith(b"\x89PNG") for name, text in written.items() if name.endswith(".png"))


def test_a_run_is_represented_by_the_weights_that_it_exported(content, copied):
    run = copied("unlearned-0", manifest=lambda manifest: manifest.update(exported_step=3))
    row = next(each for each in content(run)["rows"] if each["name"] == "unlearned-0")
    records = {each["step"]: each["forget_probability"] for each in records_of(run)}
    assert row["metrics"]["forget_probability"] == records[3] != records[6]


def test_weights_that_were_not_evaluated_are_not_shown_as_another_steps(cli, copied):
    copied("unlearned-0", manifest=lambda manifest: manifest.update(exported_step=4))
    ended = cli("report", "copies/unlearned-0")
    assert (ended.code, len(ended.errors)) == (2, 1)
    line = (
        "copies/unlearned-0 has no evaluation of step 4, whose weights it exported: evaluate its model with"
    )
    assert line in ended.errors[0]


def test_another_model_in_the_place_of_the_retain_only_one(cli, runs, copied):
    """A config names a folder, and the report is made where that holds another model."""
    unlearned = copied("unlearned-0")
    config = unlearned / "config.yaml"
    config.write_text(config.read_text().replace(f"{runs}/retain-only", f"{runs}/target"))
    ended = cli("report", unlearned)
    assert ended.code == 0
    assert f"left out: {runs}/target is not the model that unlearned-0 was measured against" in ended.err
    assert "\nretain-only " not in ended.out
    assert "\nretain-only " in cli("report", runs / "unlearned-0").out


def test_files_of_open_unlearning(cli, runs, copied):
    refused = cli("report", runs / "target", "--format", "open_unlearning", "--output", "out")
    assert refused.code == 2
    assert "open_unlearning" in refused.errors[0]
    copied("target", evaluation=lambda result: result.update(convention="open_unlearning"))
    ended = cli("report", "copies/target", "--format", "open_unlearning", "--output", "out")
    assert ended.code == 0, ended.err
    assert "wrote out/target/TOFU_EVAL.json" in ended.out
    ours, theirs = (
        records_of(runs / "target")[-1],
        json.loads(Path("out/target/TOFU_SUMMARY.json").read_text()),
    )
    assert theirs["forget_Q_A_Prob"] == ours["forget_probability"]
    assert theirs["model_utility"] == ours["model_utility"]
    assert cli("report", "out/target/TOFU_EVAL.json").code == 0


def test_csv_and_json_hold_all_metrics_in_full(cli, runs, all_runs):
    assert cli("report", *all_runs, "--format", "csv,json", "--output", "out").code == 0
    assert {path.name for path in Path("out").iterdir()} == {"report.csv", "report.json"}
    lines = {each["name"]: each for each in csv.DictReader(Path("out/report.csv").read_text().splitlines())}
    content = json.loads(Path("out/report.json").read_text())
    rows = {each["name"]: each["metrics"] for each in content["rows"]}
    last = {
        key: value for key, value in records_of(runs / "unlearned-0")[-1].items() if isinstance(value, float)
    }
    del last["epoch"]
    assert rows["unlearned-0"] == last
    assert {key: float(lines["unlearned-0"][key]) for key in last} == last
    assert [lines["unlearned-0"][key] for key in ("seed", "convention", "step")] == ["0", "dipo_pl", "6"]
    assert lines["retain-only"]["forget_quality"] == ""
    (run,) = (each for each in content["runs"] if each["name"] == "unlearned-0")
    assert run["manifest"] == json.loads((runs / "unlearned-0" / "manifest.json").read_text())
    assert [each["step"] for each in run["evaluations"]] == [0, 3, 6]
    (group,) = content["seeds"]
    assert group["runs"] == ["unlearned-0", "unlearned-1"]
    # It did not forget.
    assert content["best"]["model_utility"] == []
    verdicts = {each["name"]: each["verdict"] for each in content["rows"]}
    assert (verdicts["unlearned-0"], verdicts["target"]) == ("not_forgotten", None)
    assert (lines["unlearned-0"]["verdict"], lines["target"]["verdict"]) == ("not_forgotten", "")


def test_markdown_and_latex_mark_the_best_and_escape_names(cli, runs, copied):
    strange = copied("unlearned-1", "a_b|c&d%", manifest=forgotten)
    paths = [runs / "target", runs / "retain-only", copied("unlearned-0", manifest=forgotten), strange]
    markdown = cli("report", *paths, "--format", "markdown").out
    (line,) = (line for line in markdown.splitlines() if line.startswith(r"| a\_b\|c\&d% |"))
    heads = [
        each.strip()
        for each in next(line for line in markdown.splitlines() if "Model Utility" in line).split("|")
    ]
    utilities = [records_of(runs / name)[-1]["model_utility"] for name in ("unlearned-0", "unlearned-1")]
    shown = f"{utilities[1]:.3f}"
    cell = line.replace(r"\|", "").split("|")[heads.index("Model Utility")].strip()
    assert cell == (f"**{shown}**" if shown == f"{max(utilities):.3f}" else shown)
    assert "**" in markdown
    results, seeds = cli("report", *paths, "--format", "latex").out.split(r"\begin{tabular}")[1:]
    assert r"a\_b|c\&d\%" in results
    assert r"\textbf{\boldmath $" in results
    for table in (results, seeds):
        columns = table[1:].split("}")[0]
        body = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert {line.replace(r"\&", "").count("&") + 1 for line in body} == {len(columns)}


def test_a_users_own_metric_is_shown_without_being_asked_for(cli, copied):
    run = copied("unlearned-1")
    alter(run / "metrics.jsonl", lambda each: each.update(my_own=0.25))
    head, row = (
        line for line in cli("report", run).out.splitlines() if line.startswith(("model ", "unlearned-1 "))
    )
    assert (head.split()[-1], row.split()[-1]) == ("my_own", "0.250")
    assert json.loads(cli("report", run, "--format", "json").out)["rows"][-1]["metrics"]["my_own"] == 0.25


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "required: RUN"),
    (["nowhere"], "nowhere"),
    (["RUN", "--format", "html"], "--output"),
    (["RUN", "--format", "csv,word", "--output", "out"],
     "of html, markdown, csv, json, latex, png, open_unlearning, separated by commas (got 'csv,word')"),
    (["RUN", "--format", ",", "--output", "out"], "(got ',')"),
    (["RUN", "--output", "file"], "cannot write to --output file"),
    (["RUN", "--retain-only", "nowhere"], "nowhere"),
    (["RUN", "--ouput", "out"], "--ouput"),
])  # fmt: skip
def test_wrong_arguments_are_one_line(cli, runs, arguments, said):
    Path("file").write_text("")
    ended = cli("report", *[str(runs / "target") if each == "RUN" else each for each in arguments])
    assert ended.code == 2
    assert said in ended.errors[0]
    assert len(ended.err.splitlines()) == 1
    assert ended.out == ""
    assert not Path("out").exists()


def truncated(path):
    path.write_text(path.read_text()[: path.stat().st_size // 2])


def row_value(key, value):
    def change(path):
        alter(path, lambda content: content["sets"]["forget"]["rows"][3].update({key: value}))

    return change


def updated(**entries):
    return lambda path: alter(path, lambda content: content.update(entries))


def forget_rows(rows):
    return lambda path: alter(path, lambda content: content["sets"]["forget"].update(rows=rows, metrics={}))


EVALUATION, METRICS, MANIFEST = "evaluation/step-000006.json", "metrics.jsonl", "manifest.json"
DAMAGE = {
    "half_an_evaluation": (EVALUATION, truncated),
    "no_last_evaluation": (EVALUATION, Path.unlink),
    "text_for_a_number": (EVALUATION, row_value("log_truth_ratio", "high")),
    "nan_for_a_number": (EVALUATION, row_value("log_truth_ratio", float("nan"))),
    "list_for_a_number": (EVALUATION, row_value("min_k", [1.0, 2.0])),
    "number_for_a_list": (EVALUATION, row_value("nll", 1.0)),
    "text_for_a_list": (EVALUATION, row_value("answers", "yes")),
    "rows_that_are_none": (EVALUATION, forget_rows([1, 2])),
    "an_empty_set": (EVALUATION, forget_rows([])),
    "another_step": (EVALUATION, updated(step=5)),
    "half_a_line": (METRICS, lambda path: path.write_text(path.read_text()[:-40])),
    "steps_out_of_order": (METRICS, lambda path: path.write_text("".join(path.read_text().splitlines(True)[::-1]))),
    "no_metrics": (METRICS, Path.unlink),
    "broken_manifest": (MANIFEST, lambda path: path.write_bytes(b"\xff{")),
    "no_manifest": (MANIFEST, Path.unlink),
    "a_list_for_a_manifest": (MANIFEST, lambda path: path.write_text("[]")),
    "an_unknown_probe": (MANIFEST, updated(probe={"kind": "x", "of": "y"})),
    "a_probe_of_nothing": (MANIFEST, updated(probe={"kind": "relearning"})),
    "text_for_bits": (MANIFEST, updated(probe={"kind": "quantization", "of": "y", "bits": "8"})),
    "broken_config": ("config.yaml", lambda path: path.write_text("a: [1, ")),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_run_is_named_and_left_out_and_the_rest_reported(cli, runs, copied, damage):
    broken = copied("unlearned-1", "broken")
    file, change = DAMAGE[damage]
    change(broken / file)
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


def test_a_run_without_a_status_is_named_as_one_of_a_script(cli, copied):
    bare = copied("unlearned-1", "bare", manifest=lambda each: each.pop("status"))
    assert (
        "bare has no status, so it cannot be told whether it finished (a script"
        in cli("report", bare).errors[0]
    )
    assert cli("report", bare, "--unfinished").code == 0


def test_an_unfinished_run_is_left_out_unless_asked_for(cli, runs, copied):
    unfinished = copied("unlearned-1", "unfinished", manifest=lambda each: each.update(status="running"))
    ended = cli("report", runs / "unlearned-0", unfinished)
    assert ended.code == 0
    assert "unfinished is not finished (status: running)" in ended.err
    ended = cli("report", runs / "unlearned-0", unfinished, "--unfinished")
    assert ended.err == ""
    assert "unfinished: not finished (status: running)" in ended.out


def other_rows(name):
    return lambda evaluation: evaluation["sets"][name].update(fingerprint="0123456789abcdef")


@pytest.mark.parametrize(("change", "said"), [
    (lambda each: each.update(convention="tofu"), "unlearned-0 follows the convention 'dipo_pl', other 'tofu'"),
    (lambda each: each["settings"].update(max_new_tokens=7), "with different settings (max_new_tokens"),
    (lambda each: each["sets"]["forget"]["rows"].pop(), "the forget set has 10 rows in unlearned-0 and 9 in other"),
    (other_rows("forget"), "their forget rows differ (fingerprint"),
    (other_rows("retain"), "their retain rows differ (fingerprint"),
])  # fmt: skip
def test_what_is_not_comparable_is_refused_with_both_named(cli, runs, copied, change, said):
    other = copied("unlearned-1", "other", evaluation=change)
    ended = cli("report", runs / "unlearned-0", other, "--output", "out")
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "unlearned-0 and other are not comparable" in ended.errors[0]
    assert said in ended.errors[0]
    assert not Path("out").exists()


def test_each_run_is_reported_once_and_the_retain_only_run_of_the_config_too(content, runs, copied):
    found = content(runs / "unlearned-0", f"{runs}/../runs/unlearned-0")["runs"]
    assert [(each["name"], each["kind"]) for each in found] == [
        ("retain-only", "retain-only"), ("unlearned-0", "unlearning"),
    ]  # fmt: skip
    names = {each["name"] for each in content(runs / "unlearned-0", copied("unlearned-0"))["runs"]}
    assert {"runs/unlearned-0", "copies/unlearned-0"} <= names


def test_utility_made_of_other_parts_is_left_out(content, runs, copied):
    other = copied("unlearned-1", "other")
    alter(other / "metrics.jsonl", lambda each: each["step"] == 6 and each.pop("retain_rouge_l_recall"))
    found = content(runs / "unlearned-0", other)
    by_name = {each["name"]: each["metrics"] for each in found["rows"]}
    assert "model_utility" in by_name["unlearned-0"]
    assert "model_utility" not in by_name["other"]
    assert any(each.startswith("other: Model Utility is left out") for each in found["notes"])


def test_without_matplotlib_the_report_says_what_is_missing(cli, all_runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ended = cli("report", *all_runs, "--output", "out")
    assert ended.code == 0
    assert "plots need matplotlib: pip install 'dipo-pl[plots]'" in ended.err
    assert not list(Path("out").glob("*.png"))
    page = Path("out/report.html").read_text()
    assert "Plots need matplotlib" in page
    assert "largest gap D = " in page


def test_quantized_models_are_below_theirs(cli, runs, tmp_path):
    pytest.importorskip("torchao")
    folder = tmp_path / "runs"
    shutil.copytree(runs / "unlearned-0", folder / "unlearned-0")
    ended = cli("quantize", folder / "unlearned-0")
    assert ended.code == 0, ended.err
    assert cli("report", *folder.iterdir(), "--format", "json,html", "--output", "out").code == 0
    names = [each["name"] for each in json.loads(Path("out/report.json").read_text())["rows"]]
    assert names[-4:] == ["unlearned-0", "unlearned-0-int8", "unlearned-0-int4", "unlearned-0-nf4"]
    attacks = Path("out/report.html").read_text().split('<section id="attacks"')[1].split("</section>")[0]
    found = [attacks.count(f'<td class="left">{each}</td>') for each in ("as trained", "int8", "int4", "nf4")]
    assert found == [1, 1, 1, 1]


def test_nothing_heavy_is_imported_for_the_table(process, runs):
    ended = process(
        "report", runs / "unlearned-0", runs / "retain-only", fresh=True, PYTHONPROFILEIMPORTTIME="1"
    )
    assert ended.code == 0, ended.err
    imported = {line.rpartition("|")[2].strip() for line in ended.err.splitlines()}
    assert not imported & {"torch", "lightning", "transformers", "matplotlib", "scipy.stats"}
