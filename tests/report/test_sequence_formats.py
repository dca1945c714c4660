"""Continual unlearning in reports: stages in plots, in tables of every format, and on the page."""

import csv
import json
import math
import re

import pytest
from sample_runs import EVIL, PATH, THREE, alter, lines_of, plot

from dipo_pl.report.contents import read_report
from dipo_pl.report.formats import as_csv, as_json, as_latex, as_markdown, as_text
from dipo_pl.report.generations import generated_rows
from dipo_pl.report.page import as_html
from dipo_pl.report.sequences import stage_table
from dipo_pl.report.texts import Texts


def test_the_plot_of_utility_has_a_line_a_sequence_and_the_retain_only_model_once(four):
    drawn = plot(read_report(four), "sequence_utility")
    found = lines_of(drawn.figure().axes[0])
    assert list(found) == [
        "dipo-sust (sustainability)", "dipo-scal (scalability)", "npo-sust (sustainability)", "npo-scal (scalability)",
        "retain-only",
    ]  # fmt: skip
    for name, fall in (("dipo-sust (sustainability)", 0.08), ("npo-scal (scalability)", 0.075)):
        assert found[name] == [[stage, pytest.approx(0.7 - fall * stage)] for stage in range(4)]
    assert found["retain-only"] == [[stage, pytest.approx(0.66 + 0.001 * stage)] for stage in (1, 2, 3)]
    assert "npo-scal (scalability): 0.700 at stage 0, 0.625 at stage 1" in drawn.description


def test_retain_only_models_that_differ_are_named(sequence):
    folders = [sequence(name, retained=True) for name in "xy"]
    alter(
        folders[1] / "stage-2-retain_only" / "metrics.jsonl", lambda each: each.update(retain_knowledge=0.5)
    )
    found = lines_of(plot(read_report(folders), "sequence_utility").figure().axes[0])
    assert [each for each in found if "retain" in each] == [
        f"retain-only of {each} (sustainability)" for each in "xy"
    ]
    assert found["retain-only of y (sustainability)"][1] == [2, 0.5]


def test_the_plot_of_requests_shows_what_comes_back_and_where_it_was_requested(sequence):
    drawn = plot(read_report([sequence()]), "sequence_requests")
    axes = drawn.figure().axes[0]
    found = lines_of(axes)
    assert list(found) == ["1: a", f"2: {PATH[-24:]}", "3: c", "the request"]
    assert found["1: a"] == [[1, pytest.approx(0.1)], [2, pytest.approx(0.17)], [3, pytest.approx(0.24)]]
    rings = [each.get_xydata().tolist() for each in axes.get_lines() if each.get_markersize() == 12]
    assert rings == [*([[place, pytest.approx(0.1)]] for place in (1, 2, 3)), []]
    before = [each.get_xydata().tolist() for each in axes.get_lines() if each.get_linestyle() == ":"]
    assert before == [
        [[place - 1, pytest.approx(0.91 - 0.01 * place)], [place, pytest.approx(0.1)]] for place in (1, 2, 3)
    ]
    assert "1: a: 0.900 at stage 0, 0.100 at stage 1, 0.170 at stage 2, 0.240 at stage 3" in drawn.description


def test_the_table_of_stages_in_the_terminal(sequence):
    report = read_report([sequence()])
    table = stage_table(report.sequences[0], report.utility_metric)
    lines = table.to_text().splitlines()
    assert lines[0].startswith(
        "Continual unlearning: seq (sustainability). Request 1, 2, ...: ROUGE-L F1 of the answers"
    )
    head = next(index for index, line in enumerate(lines) if line.startswith("stage "))
    titles = " ".join(
        ("stage request KnowMem(retain) KnowMem(forget) VerbMem", "request 1 request 2 request 3")
    )
    assert " ".join(lines[head].split()) == titles
    assert [" ".join(line.split()) for line in lines[head + 1 :]] == [
        "0 - 0.700 0.900 0.300 0.900 - -", "1 a 0.620 0.100 0.033 0.100 0.890 -",
        f"2 {PATH} 0.540 0.100 0.033 0.170 0.100 0.880", "3 c 0.460 0.100 0.033 0.240 0.170 0.100",
    ]  # fmt: skip
    for width in (60, 80):
        narrow = table.to_text(width).splitlines()
        assert max(map(len, narrow)) <= width < max(map(len, lines))
        rows = [[line.split()[2:] for line in each if line.startswith("3 ")] for each in (lines, narrow)]
        assert len(rows[1]) > len(rows[0]) == 1
        assert [word for row in rows[1] for word in row] == rows[0][0]
    assert f"...{PATH[-27:]} " in table.to_text(80)


def test_markdown_and_latex_have_a_table_a_sequence(four):
    report = read_report(four)
    markdown = as_markdown(report).split("Continual unlearning: ")
    assert len(markdown) == 5
    (line,) = (line for line in markdown[1].splitlines() if line.startswith("| 2 |"))
    escaped = r"../requests/2026-02 \<b\>\&\|\_\$.jsonl"
    assert line == rf"| 2 | {escaped} | 0.540 | 0.100 | 0.033 | 0.170 | 0.100 | 0.880 |"
    cells = {len(re.findall(r"(?<!\\)\|", each)) for each in markdown[1].splitlines() if each.startswith("|")}
    assert cells == {9}
    latex = as_latex(report).split("% Continual unlearning: ")
    assert len(latex) == 5
    assert latex[1].count(r"\begin{tabular}{llrrrrrr}") == latex[1].count(r"\end{tabular}") == 1
    body = [line for line in latex[1].splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", each)) for each in body] == [7] * 5
    assert body[3].startswith(r"2 & ../requests/2026-02 \textless{}b\textgreater{}\&|\_\$.jsonl & $0.540$ & ")
    assert body[1].endswith(r"$0.900$ & -- & -- \\")


def test_csv_and_json_tell_stages(sequence):
    report = read_report([sequence(retained=True)])
    lines = {each["name"]: each for each in csv.DictReader(as_csv(report).splitlines())}
    columns = ("sequence", "mode", "stage", "request")
    assert [lines["seq/stage-2"][key] for key in columns] == ["seq", "sustainability", "2", PATH]
    assert float(lines["seq/stage-2"]["request_1_knowledge"]) == pytest.approx(0.17)
    for name in ("before unlearning", "stage-1-retain_only"):
        assert [lines[name][key] for key in columns] == [""] * 4
    (found,) = json.loads(as_json(report))["sequences"]
    assert [found[key] for key in ("name", "utility_metric", "request_metric")] == [
        "seq", "retain_knowledge", "knowledge",
    ]  # fmt: skip
    assert [(each["stage"], each["run"], each["request"]) for each in found["stages"]] == [
        (0, "seq/stage-1", None), (1, "seq/stage-1", "a"), (2, "seq/stage-2", PATH), (3, "seq/stage-3", "c"),
    ]  # fmt: skip
    assert found["stages"][2]["retain_only"]["retain_knowledge"] == pytest.approx(0.662)
    assert found["stages"][0]["retain_only"] == {}
    told = {int(one): {int(k): v for k, v in known.items()} for one, known in found["by_request"].items()}
    assert told == report.sequences[0].by_request()


def test_data_without_wrong_answers_needs_no_forget_quality(four):
    report = read_report(four)
    assert report.notes == ()
    page = as_html(report)
    assert '<section id="trajectory"' not in page
    assert "no forget row has perturbed answers" in page
    assert "log10 p is at least" not in page
    assert "Forget Quality" not in as_text(report)


def test_the_lowest_p_is_given_where_all_have_as_many_rows(sequence):
    def floor(mode):
        page = as_html(read_report([sequence(mode, mode=mode, shape="tofu", retained=True)]))
        return re.findall(r"With (\d+) forget rows log10 p is at least (\S+),", page)

    assert floor("sustainability") == [("3", f"{math.log10(2 / 20):.2f}")]
    assert floor("scalability") == []


def test_answers_to_different_questions_are_not_side_by_side(four):
    found = [
        each for each in generated_rows(read_report(four, texts=Texts.FULL).runs) if each.set_name == "forget"
    ]
    asked = {each.question.rpartition(":")[0]: set() for each in found}
    assert asked.keys() == set(THREE)
    for each in found:
        text = each.question.rpartition(":")[0]
        assert each.truth == f"{text}: answer {each.question[-2]}"
        assert {answer.rpartition(" at step")[0] for _, answer in each.answers} == {text}
        asked[text] |= {name for name, _ in each.answers}
    assert {"dipo-sust/stage-1", "dipo-scal/stage-3"} <= asked["a"]
    assert "dipo-sust/stage-2" not in asked["a"]


def test_the_command_takes_folders_of_sequences(cli, four, sequence):
    ended = cli("report", *four, "--output", "out")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.count("Continual unlearning: ") == 4
    assert "wrote out/sequence_utility.png" in ended.out
    assert "wrote out/sequence_requests_4.png" in ended.out
    folder = sequence(requests=["a"])
    alter(folder / "stage-1" / "manifest.json", lambda each: each.update(status="running"))
    assert "stage-1 is not finished" in cli("report", folder).errors[0]


def test_names_of_requests_are_texts(sequence):
    def page(text):
        folder = sequence(re.sub("/", "\N{FRACTION SLASH}", text[:40]), requests=[text, "b"])
        report = read_report([folder])
        for write in (as_text, as_markdown, as_latex):
            assert "\x1b" not in write(report)
        return as_html(report)

    evil, plain = page(f"{EVIL}/../%2e\x1b[31m\n_$x_{{1}}"), page("plain")
    assert re.findall("<(script|h3|table|article)", evil) == re.findall("<(script|h3|table|article)", plain)
    ids = re.findall(r'\sid="([^"]*)"', evil)
    assert len(ids) == len(set(ids))
    assert [each for each in ids if not re.fullmatch(r"[\w.-]+", each)] == []
