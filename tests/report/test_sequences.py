"""Sequences of requests in reports: what each stage left, in numbers, tables and pictures, and what is not compared."""

import csv
import json
import math
import re
import sys

import pytest

from dipo_pl.errors import InputError
from dipo_pl.report import figures, sequences
from dipo_pl.report.contents import read_report
from dipo_pl.report.generations import side_by_side
from dipo_pl.report.latex import as_latex
from dipo_pl.report.machine import as_csv, as_json
from dipo_pl.report.markdown import as_markdown
from dipo_pl.report.page import as_html
from dipo_pl.report.pictures import all_pictures, of_sequence
from dipo_pl.report.runs import Kind, read_run
from dipo_pl.report.seeds import seed_groups
from dipo_pl.report.text import as_text

PATH = "../requests/2026-02 <b>&|_$.jsonl"
# What requests 1 to 3 of three are at stages 0 to 3: those of the stages before, as far as stages began with them.
SUSTAINED = {1: {0: 0.9, 1: 0.1, 2: 0.17, 3: 0.24}, 2: {1: 0.89, 2: 0.1, 3: 0.17}, 3: {2: 0.88, 3: 0.1}}
SCALED = {1: {0: 0.9, 1: 0.1, 2: 0.17, 3: 0.24}, 2: {0: 0.9, 2: 0.1, 3: 0.17}, 3: {0: 0.9, 3: 0.1}}
THREE = ["a", PATH, "c"]


def alter(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def picture(report, name):
    (found,) = (each for group in all_pictures(report) for each in group.pictures if each.name == name)
    return found


def lines_of(axes):
    """The points of the lines that the legend names, and those that it does not."""
    named = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    return {name: points for name, points in named.items() if not name.startswith("_")}


def close(found, expected):
    assert found.keys() == expected.keys()
    for place in expected:
        assert found[place] == pytest.approx(expected[place])


@pytest.fixture
def four(write_sequence, tmp_path):
    """Two methods in two modes."""
    return [
        write_sequence(tmp_path / "runs" / f"{name}-{mode[:4]}", mode, THREE, method=method, retained=True)
        for name, method in (("dipo", 0.0), ("npo", 0.5))
        for mode in ("sustainability", "scalability")
    ]


@pytest.mark.parametrize(
    ("mode", "utility", "matrix"),
    [("sustainability", [0.7, 0.62, 0.54, 0.46], SUSTAINED), ("scalability", [0.7, 0.65, 0.6, 0.55], SCALED)],
)
def test_stages_with_utility_and_what_each_request_left(write_sequence, tmp_path, mode, utility, matrix):
    (sequence,) = read_report([write_sequence(tmp_path / "seq", mode, THREE)]).sequences
    assert (sequence.name, sequence.mode, sequence.requests) == ("seq", mode, tuple(THREE))
    assert [(each.number, each.request) for each in sequence.stages] == [
        (0, ""),
        (1, "a"),
        (2, PATH),
        (3, "c"),
    ]
    figure = sequences.utility_figure([sequence])
    assert figure == "retain_knowledge"
    assert [each.figures[figure] for each in sequence.stages] == pytest.approx(utility)
    assert sequence.request_figure == "knowledge"
    close(sequence.matrix(), matrix)


def test_a_folder_stands_for_its_finished_stages_and_they_stand_for_it(write_sequence, tmp_path):
    folder = write_sequence(tmp_path / "seq", requests=[f"r{number}" for number in range(1, 11)])
    (folder / "stage-notes").mkdir()
    (folder / "sequence.png").write_bytes(b"")
    names = [f"seq/stage-{number}" for number in range(1, 11)]
    assert [each.name for each in read_report([folder]).runs] == names
    singly = read_report([folder / f"stage-{number}" for number in (3, 1, 2)])
    assert [each.number for each in singly.sequences[0].stages] == [0, 1, 2, 3]
    for number, status in ((4, "running"), (10, "failed")):
        alter(
            folder / f"stage-{number}" / "manifest.json",
            lambda each, status=status: each.update(status=status),
        )
    report = read_report([folder])
    assert [each.name for each in report.runs] == [*names[:3], *names[4:9]]
    assert [each.split(":")[0] for each in report.left_out] == [
        f"{folder}/stage-{number} is not finished (status" for number in (4, 10)
    ]
    assert [each.number for each in report.sequences[0].stages] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    # Stage 5 began with what stage 4 left, which is shown as no stage of its own.
    assert 4 not in report.sequences[0].matrix()[5]
    assert [each.name for each in read_report([folder], unfinished=True).runs] == names


def test_what_a_stage_measured_itself_counts_before_what_the_next_one_began_with(write_sequence, tmp_path):
    def change(stage, step, found):
        if stage > 1 and step == 0:
            found["request_1_knowledge"] = 0.55

    (sequence,) = read_report([write_sequence(tmp_path / "seq", requests=THREE, change=change)]).sequences
    close(sequence.matrix(), SUSTAINED)


def test_without_evaluations_before_training_there_is_no_stage_0(write_sequence, tmp_path):
    folder = write_sequence(tmp_path / "seq", requests=THREE)
    for number in (1, 2, 3):
        metrics = folder / f"stage-{number}" / "metrics.jsonl"
        metrics.write_text(metrics.read_text().splitlines()[1] + "\n")
    (sequence,) = read_report([folder]).sequences
    assert [each.number for each in sequence.stages] == [1, 2, 3]
    close(sequence.matrix(), {1: {1: 0.1, 2: 0.17, 3: 0.24}, 2: {2: 0.1, 3: 0.17}, 3: {3: 0.1}})


def test_a_folder_with_a_manifest_is_a_run_and_no_sequence(write_sequence, tmp_path):
    folder = write_sequence(tmp_path / "seq", requests=["a"])
    assert sequences.stage_folders(folder) == [folder / "stage-1"]
    assert sequences.stage_folders(folder / "stage-1") == []
    (folder / "manifest.json").write_text("{}")
    assert sequences.stage_folders(folder) == []


def test_sequences_of_one_name_are_told_apart(write_sequence, tmp_path):
    folders = [write_sequence(tmp_path / top / "seq", requests=["a", "b"]) for top in ("x", "y")]
    report = read_report(folders)
    assert [each.name for each in report.runs] == [
        f"{top}/seq/stage-{number}" for top in "xy" for number in (1, 2)
    ]
    assert [each.name for each in report.sequences] == ["x/seq", "y/seq"]


@pytest.mark.parametrize(
    ("shape", "lacking", "expected"),
    [
        ("tofu", None, "model_utility"),
        ("tofu", "model_utility", "retain_probability"),
        ("muse", None, "retain_knowledge"),
        ("muse", "retain_knowledge", "retain_probability"),
    ],
)
def test_utility_is_the_first_figure_that_all_stages_have(write_sequence, tmp_path, shape, lacking, expected):
    def change(stage, step, found):
        if (stage, step) == (2, 4):
            found.pop(lacking, None)

    whole = write_sequence(tmp_path / "whole", requests=THREE, shape=shape)
    lacks = write_sequence(tmp_path / "lacks", requests=THREE, shape=shape, change=change)
    report = read_report([whole, lacks])
    assert report.utility_figure == expected
    assert len(lines_of(picture(report, "sequence_utility").draw().axes[0])) == 2


def test_no_utility_where_no_figure_is_in_all_stages(write_sequence, tmp_path):
    def change(stage, step, found):
        del found["retain_probability" if stage == 1 else "retain_knowledge"]

    report = read_report([write_sequence(tmp_path / "seq", requests=THREE, change=change)])
    assert report.utility_figure is None
    names = {each.name for group in all_pictures(report) for each in group.pictures}
    assert names & {"sequence_utility", "sequence_requests"} == {"sequence_requests"}
    assert "KnowMem(retain)  KnowMem(forget)" not in sequences.as_text(tmp_path / "seq")


def test_utility_of_other_parts_is_none(write_sequence, tmp_path):
    def change(stage, step, found):
        if (stage, step) == (2, 4):
            del found["retain_truth_ratio"]

    (sequence,) = read_report([write_sequence(tmp_path / "seq", shape="tofu", change=change)]).sequences
    assert "model_utility" not in sequence.stages[2].figures
    assert sequences.utility_figure([sequence]) == "retain_probability"


def test_the_model_before_may_lack_utility(write_sequence, tmp_path):
    def change(stage, step, found):
        if step == 0:
            del found["retain_truth_ratio"]

    (sequence,) = read_report([write_sequence(tmp_path / "seq", shape="tofu", change=change)]).sequences
    assert sequences.utility_figure([sequence]) == "model_utility"
    assert ["model_utility" in each.figures for each in sequence.stages] == [False, True, True, True, True]


def test_requests_are_told_by_probability_where_knowledge_was_measured_less_often(write_sequence, tmp_path):
    def change(stage, step, found):
        found.pop("request_2_knowledge", None)

    report = read_report([write_sequence(tmp_path / "seq", requests=THREE, change=change)])
    (sequence,) = report.sequences
    assert sequence.request_figure == "probability"
    close(
        sequence.matrix(),
        {place: {stage: value / 2 for stage, value in known.items()} for place, known in SUSTAINED.items()},
    )
    drawn = picture(report, "sequence_requests").draw().axes[0]
    assert drawn.get_ylabel().startswith("P(each request)")


def test_without_figures_of_requests(write_sequence, tmp_path):
    def change(stage, step, found):
        for key in [key for key in found if key.startswith("request")]:
            del found[key]

    folder = write_sequence(tmp_path / "seq", requests=THREE, change=change)
    report = read_report([folder])
    assert report.sequences[0].request_figure is None
    assert report.sequences[0].matrix() == {}
    assert "No figure of single requests was measured." in sequences.as_text(folder)
    assert "<svg" in as_html(report)
    sequences.write_picture(folder, tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_utility_has_a_line_a_sequence_and_the_retained_model(four):
    report = read_report(four)
    found = lines_of(picture(report, "sequence_utility").draw().axes[0])
    # All were measured against like models, which are drawn once.
    assert list(found) == [
        "dipo-sust (sustainability)", "dipo-scal (scalability)", "npo-sust (sustainability)", "npo-scal (scalability)",
        "retain-only",
    ]  # fmt: skip
    for name, fall in (("dipo-sust (sustainability)", 0.08), ("npo-scal (scalability)", 0.075)):
        expected = [[stage, pytest.approx(0.7 - fall * stage)] for stage in range(4)]
        assert found[name] == expected
    assert found["retain-only"] == [[stage, pytest.approx(0.66 + 0.001 * stage)] for stage in (1, 2, 3)]
    assert (
        "npo-scal (scalability): 0.700 at stage 0, 0.625 at stage 1"
        in picture(report, "sequence_utility").description
    )


def test_retained_models_that_differ_are_named(four):
    metrics = four[1] / "stage-2-retain_only" / "metrics.jsonl"
    metrics.write_text(re.sub(r'("retain_knowledge": )[\d.]+', r"\g<1>0.5", metrics.read_text()))
    found = lines_of(picture(read_report(four), "sequence_utility").draw().axes[0])
    assert [each for each in found if each.startswith("retain")] == [
        "retain-only of dipo-sust (sustainability)", "retain-only of dipo-scal (scalability)",
    ]  # fmt: skip
    assert found["retain-only of dipo-scal (scalability)"][1] == [2, 0.5]


def test_the_picture_of_requests_shows_what_comes_back_and_where_it_was_asked_for(write_sequence, tmp_path):
    report = read_report([write_sequence(tmp_path / "seq", requests=THREE)])
    drawn = picture(report, "sequence_requests").draw()
    found = lines_of(drawn.axes[0])
    assert list(found) == ["1: a", "2: ...2026-02 <b>&|_$.jsonl", "3: c", "the request is made"]
    assert found["1: a"] == [[1, pytest.approx(0.1)], [2, pytest.approx(0.17)], [3, pytest.approx(0.24)]]
    lines = drawn.axes[0].get_lines()
    rings = [each.get_xydata().tolist() for each in lines if each.get_markersize() == 12]
    assert rings == [[[place, pytest.approx(0.1)]] for place in (1, 2, 3)]
    before = [each.get_xydata().tolist() for each in lines if each.get_linestyle() == ":"]
    assert before == [
        [[place - 1, pytest.approx(0.91 - 0.01 * place)], [place, pytest.approx(0.1)]] for place in (1, 2, 3)
    ]
    said = picture(report, "sequence_requests").description
    assert "1: a: 0.900 at stage 0, 0.100 at stage 1, 0.170 at stage 2, 0.240 at stage 3" in said


@pytest.mark.parametrize("count", [3, 20])
def test_a_long_legend_leaves_the_axes_their_room(count):
    made = [
        figures.Request(f"{place}: author_{place}", place, [place, 20], [0.1, 0.2])
        for place in range(1, count + 1)
    ]
    drawn = figures.requests_by_stage(made, "P")
    drawn.draw_without_rendering()
    assert drawn.axes[0].get_window_extent().height > 0.5 * 4.4 * drawn.dpi


def test_the_table_of_stages(write_sequence, tmp_path):
    folder = write_sequence(tmp_path / "seq", requests=THREE)
    lines = sequences.as_text(folder).splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("stage "))
    assert re.split(" {2,}", lines[head]) == [
        "stage", "request", "KnowMem(retain)", "KnowMem(forget)", "VerbMem", "request 1", "request 2", "request 3",
    ]  # fmt: skip
    assert [re.split(" {2,}", line) for line in lines[head + 1 :]] == [
        ["0", "-", "0.700", "0.900", "0.300", "0.900", "-", "-"],
        ["1", "a", "0.620", "0.100", "0.033", "0.100", "0.890", "-"],
        ["2", "...2026-02 <b>&|_$.jsonl", "0.540", "0.100", "0.033", "0.170", "0.100", "0.880"],
        ["3", "c", "0.460", "0.100", "0.033", "0.240", "0.170", "0.100"],
    ]
    assert lines[0].startswith(
        "Requests one after another: seq (sustainability). Request 1, 2, ...: knowledge of it"
    )


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_gets_the_table_of_stages_in_blocks(write_sequence, tmp_path, width, monkeypatch):
    folder = write_sequence(tmp_path / "seq", requests=THREE)
    whole, narrow = sequences.as_text(folder), sequences.as_text(folder, width)
    assert max(map(len, narrow.splitlines())) <= width < max(map(len, whole.splitlines()))
    rows = [
        [line.split()[2:] for line in text.splitlines() if line.startswith("3 ")] for text in (whole, narrow)
    ]
    assert len(rows[1]) > len(rows[0]) == 1
    assert [word for row in rows[1] for word in row] == rows[0][0]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    assert sequences.as_text(folder) == narrow
    assert max(map(len, as_text(read_report([folder]), width).split("Requests one")[1].splitlines())) <= width


def test_markdown_and_latex_have_a_table_a_sequence(four):
    report = read_report(four)
    markdown = as_markdown(report).split("Requests one after another: ")
    assert len(markdown) == 5
    (line,) = (line for line in markdown[1].splitlines() if line.startswith("| 2 |"))
    assert (
        line
        == r"| 2 | ../requests/2026-02 \<b\>\&\|\_\$.jsonl | 0.540 | 0.100 | 0.033 | 0.170 | 0.100 | 0.880 |"
    )
    assert {
        len(re.findall(r"(?<!\\)\|", each)) for each in markdown[1].splitlines() if each.startswith("|")
    } == {9}
    latex = as_latex(report).split("% Requests one after another: ")
    assert len(latex) == 5
    assert latex[1].count(r"\begin{tabular}{rlrrrrrr}") == latex[1].count(r"\end{tabular}") == 1
    body = [line for line in latex[1].splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", each)) for each in body] == [7] * 5
    assert body[3].startswith(r"2 & ../requests/2026-02 \textless{}b\textgreater{}\&|\_\$.jsonl & $0.540$ & ")
    assert body[1].endswith(r"$0.900$ & -- & -- \\")


def test_csv_and_json_tell_stages(write_sequence, tmp_path):
    folder = write_sequence(tmp_path / "seq", requests=THREE, retained=True)
    report = read_report([folder])
    lines = {each["name"]: each for each in csv.DictReader(as_csv(report).splitlines())}
    told = ("sequence", "mode", "stage", "request")
    assert [lines["seq/stage-2"][key] for key in told] == ["seq", "sustainability", "2", PATH]
    assert float(lines["seq/stage-2"]["request_1_knowledge"]) == pytest.approx(0.17)
    for name in ("before unlearning", "stage-1-retain_only"):
        assert [lines[name][key] for key in told] == [""] * 4
    (sequence,) = json.loads(as_json(report))["sequences"]
    assert (sequence["name"], sequence["utility"], sequence["request_figure"]) == (
        "seq",
        "retain_knowledge",
        "knowledge",
    )
    assert [(each["stage"], each["run"], each["request"]) for each in sequence["stages"]] == [
        (0, "seq/stage-1", None), (1, "seq/stage-1", "a"), (2, "seq/stage-2", PATH), (3, "seq/stage-3", "c"),
    ]  # fmt: skip
    assert sequence["stages"][2]["retain_only"]["retain_knowledge"] == pytest.approx(0.662)
    assert sequence["stages"][0]["retain_only"] == {}
    close(
        {
            int(place): {int(k): v for k, v in known.items()}
            for place, known in sequence["by_request"].items()
        },
        SUSTAINED,
    )


def test_none_is_best_of_models_that_were_to_forget_different_things(four):
    report = read_report(four)
    assert report.table.best == frozenset()
    assert report.table.short.marks == "No figure is marked: the models were to forget different things."
    same = read_report([each / "stage-2" for each in (four[0], four[2])])
    best = [
        row.name
        for index, row in enumerate(same.table.rows)
        if (index, "retain_knowledge") in same.table.best
    ]
    assert best == ["dipo-sust/stage-2"]


def test_stages_are_no_seeds_of_each_other(write_sequence, tmp_path):
    folder = write_sequence(tmp_path / "seq", requests=THREE)
    stages = [folder / f"stage-{number}" for number in (1, 2, 3)]
    for seed, each in enumerate(stages):
        (each / "config.yaml").write_text((stages[0] / "config.yaml").read_text())
        alter(each / "manifest.json", lambda manifest, seed=seed: manifest.update(seed=seed))
    assert seed_groups([read_run(each) for each in stages]) == []
    for each in stages:
        alter(each / "manifest.json", lambda manifest: manifest.pop("sequence"))
    assert len(seed_groups([read_run(each) for each in stages])) == 1


def set_of(folder, stage, name):
    """Gives a set of a stage's evaluations other rows."""
    for path in (folder / f"stage-{stage}" / "evaluation").iterdir():
        alter(path, lambda each: each["sets"][name].update(fingerprint="0" * 64))


@pytest.mark.parametrize(
    ("name", "refused"),
    [("retain", False), ("forget", False), ("request_2", True), ("retain_questions", True)],
)
def test_what_follows_the_requests_may_differ_between_stages_and_nothing_else(
    write_sequence, tmp_path, name, refused
):
    folder = write_sequence(tmp_path / "seq", requests=THREE)
    set_of(folder, 2, name)
    if refused:
        with pytest.raises(InputError, match=rf"their {name} rows differ"):
            read_report([folder])
    else:
        report = read_report([folder])
        assert len(report.sequences[0].stages) == 4
        said = "seq: its stages measured different retain rows, since what is asked for is taken out of them"
        assert report.notes == ((said,) if name == "retain" else ())


@pytest.mark.parametrize("name", ["forget", "retain", "request_1"])
def test_one_stage_of_two_methods_is_of_the_same_rows(four, name):
    set_of(four[2], 2, name)
    with pytest.raises(
        InputError, match=rf"dipo-sust/stage-2 and npo-sust/stage-2 .* their {name} rows differ"
    ):
        read_report([four[0] / "stage-2", four[2] / "stage-2"])


def test_a_request_at_one_place_may_be_another_in_another_sequence(write_sequence, tmp_path):
    folders = [write_sequence(tmp_path / name, requests=[name, "c"]) for name in "ab"]
    assert len(read_report(folders).sequences) == 2
    set_of(folders[1], 2, "request_2")
    with pytest.raises(InputError, match="their request_2 rows differ"):
        read_report([folders[0] / "stage-2", folders[1] / "stage-2"])


def test_stages_follow_one_convention(write_sequence, tmp_path):
    folder = write_sequence(tmp_path / "seq", requests=THREE)
    alter(
        folder / "stage-3" / "evaluation" / "step-000004.json", lambda each: each.update(convention="dipo_pl")
    )
    with pytest.raises(InputError, match="follows the convention 'muse', seq/stage-3 'dipo_pl'"):
        read_report([folder])


def test_ordinary_runs_beside_a_sequence_are_still_of_the_same_rows(write_sequence, tmp_path):
    plain = write_sequence(tmp_path / "plain", requests=["a", "b"])
    for number in (1, 2):
        alter(plain / f"stage-{number}" / "manifest.json", lambda each: each.pop("sequence"))
    sequence = write_sequence(tmp_path / "seq", requests=["a", "b"])
    assert len(read_report([sequence, plain / "stage-1"]).runs) == 3
    with pytest.raises(InputError, match="stage-1 and stage-2 are not comparable"):
        read_report([sequence, plain / "stage-1", plain / "stage-2"])


def test_a_retained_model_of_other_rows_is_refused_beside_an_ordinary_run(write_sequence, tmp_path):
    folder = write_sequence(tmp_path / "seq", requests=["a", "b"], retained=True)
    assert read_report([folder / "stage-1"], retain_only=folder / "stage-2-retain_only").sequences
    alter(folder / "stage-1" / "manifest.json", lambda each: each.pop("sequence"))
    with pytest.raises(InputError, match="stage-2-retain_only and stage-1 are not comparable"):
        read_report([folder / "stage-1"], retain_only=folder / "stage-2-retain_only")


def test_a_probe_of_a_stage_is_no_stage(write_sequence, tmp_path):
    folder = write_sequence(tmp_path / "seq", requests=THREE)
    probe = {"kind": "quantization", "of": str(folder / "stage-2"), "bits": 8}
    alter(folder / "stage-3" / "manifest.json", lambda each: each.update(probe=probe))
    report = read_report([folder])
    assert [each.number for each in report.sequences[0].stages] == [0, 1, 2]
    assert [each.name for each in report.runs] == ["seq/stage-1", "seq/stage-2", "stage-3"]


def test_retained_models_given_by_hand_are_those_of_the_configs(write_sequence, tmp_path):
    folder = write_sequence(tmp_path / "seq", requests=THREE, retained=True)
    given, found = read_report(sorted(folder.iterdir())), read_report([folder])
    for report in (given, found):
        kinds = [row.kind for row in report.table.rows]
        assert kinds == [Kind.RETAIN_ONLY] * 3 + [Kind.BEFORE] + [Kind.UNLEARNED] * 3
        known = [each.retain_only.get("retain_knowledge") for each in report.sequences[0].stages]
        assert known == [None, *(pytest.approx(0.66 + 0.001 * stage) for stage in (1, 2, 3))]
    without = read_report([write_sequence(tmp_path / "without", requests=THREE)])
    assert all(each.retain_only == {} for each in without.sequences[0].stages)


def test_only_the_first_model_is_one_before_unlearning(write_sequence, tmp_path):
    for mode in ("sustainability", "scalability"):
        folder = write_sequence(tmp_path / mode, mode, THREE)
        (before,) = (row for row in read_report([folder]).table.rows if row.kind is Kind.BEFORE)
        assert before.run.name == f"{mode}/stage-1"
    alone = read_report([tmp_path / "sustainability" / "stage-2"])
    assert [row.kind for row in alone.table.rows] == [Kind.BEFORE, Kind.UNLEARNED]
    assert [each.number for each in alone.sequences[0].stages] == [2]


def test_forget_quality_is_not_computed_against_other_rows(write_sequence, tmp_path):
    def change(stage, step, found):
        for key in ("forget_quality", "forget_quality_log10_p"):
            found.pop(key, None)

    folder = write_sequence(tmp_path / "seq", requests=THREE, shape="tofu", change=change)
    others = write_sequence(tmp_path / "others", requests=THREE, shape="tofu", retained=True)
    report = read_report([folder], retain_only=others / "stage-2-retain_only")
    values = {row.name: row.values for row in report.table.rows}
    assert [
        f"seq/stage-{number}" for number in (1, 2, 3) if "forget_quality" in values[f"seq/stage-{number}"]
    ] == ["seq/stage-2"]
    names = {each.name: each for group in all_pictures(report) for each in group.pictures}
    assert re.findall(r"(\S+): largest gap", names["truth_ratio"].description) == ["seq/stage-2"]
    assert any(each == "seq/stage-1: no Forget Quality, since it was measured without forget_quality.retain_result"
               for each in report.notes)  # fmt: skip


def test_stages_against_retained_models_of_their_own_need_no_word(write_sequence, tmp_path):
    folder = write_sequence(tmp_path / "seq", requests=THREE, shape="tofu", retained=True)
    report = read_report([folder])
    assert not any("different retain-only results" in each for each in report.notes)
    assert "Forget Quality" in sequences.as_text(folder)
    assert {each.name for group in all_pictures(report) for each in group.pictures} >= {
        "trajectory", "truth_ratio", "truth_ratio_2", "truth_ratio_3", "sequence_utility", "sequence_requests",
    }  # fmt: skip


def test_data_without_wrong_answers_has_no_forget_quality_and_is_not_asked_for_it(four):
    report = read_report(four)
    assert report.notes == ()
    page = as_html(report)
    trajectory = page.split('<section id="trajectory"')[1].split("</section>")[0]
    assert "no forget row here has perturbed answers" in trajectory
    assert "<svg" not in trajectory
    assert "log10 p cannot fall" not in page
    assert "Forget Quality" not in as_text(report)


def test_the_least_p_is_told_where_all_have_as_many_rows(write_sequence, tmp_path):
    def floor(mode):
        return re.findall(
            r"With (\d+) forget rows log10 p cannot fall below (\S+):",
            as_html(read_report([write_sequence(tmp_path / mode, mode, THREE, shape="tofu", retained=True)])),
        )

    assert floor("sustainability") == [("3", f"{math.log10(2 / 20):.2f}")]
    assert floor("scalability") == []


def test_answers_to_different_questions_are_not_side_by_side(four):
    found = [each for each in side_by_side(read_report(four).runs) if each.set_name == "forget"]
    asked = {each.question.rpartition(":")[0]: set() for each in found}
    assert asked.keys() == set(THREE)
    for each in found:
        text = each.question.rpartition(":")[0]
        assert each.truth == f"{text}: answer {each.question[-2]}"
        assert {answer.rpartition(" at step")[0] for _, answer in each.answers} == {text}
        asked[text] |= {name for name, _ in each.answers}
    assert {"dipo-sust/stage-1", "dipo-scal/stage-3"} <= asked["a"]
    assert "dipo-sust/stage-2" not in asked["a"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("three", "sequence is three, no stage of one"),
        (
            {"mode": "sustainabilty"},
            "sequence.mode is 'sustainabilty', neither sustainability nor scalability",
        ),
        ({"requests": "a"}, "sequence.requests is a, no list of names"),
        ({"requests": ["a", 2]}, "sequence.requests is ['a', 2], no list of names"),
        ({"stage": 3}, "sequence.stage is 3, and 2 requests have been made"),
        ({"stage": True, "requests": ["a"]}, "sequence.stage is True, and 1 requests have been made"),
    ],
)
def test_a_stage_that_says_nonsense_is_named_and_left_out(write_sequence, tmp_path, entry, said):
    folder = write_sequence(tmp_path / "seq", requests=THREE)

    def change(manifest):
        manifest["sequence"] = manifest["sequence"] | entry if isinstance(entry, dict) else entry

    alter(folder / "stage-2" / "manifest.json", change)
    report = read_report([folder])
    assert report.left_out == (f"{folder}/stage-2: {said}",)
    assert len(report.runs) == 2


@pytest.mark.parametrize("change", [{"mode": "scalability"}, {"requests": ["a", "z"]}])
def test_stages_of_different_sequences_in_one_folder_are_refused(write_sequence, tmp_path, change):
    folder = write_sequence(tmp_path / "seq", requests=THREE)
    alter(folder / "stage-2" / "manifest.json", lambda each: each["sequence"].update(change))
    with pytest.raises(InputError, match="are not stages of one sequence") as caught:
        read_report([folder])
    assert f"{folder}/stage-2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_end_of_a_sequence_has_its_table_and_its_picture(write_sequence, tmp_path):
    folder = write_sequence(tmp_path / "seq", requests=THREE, retained=True)
    path = folder / "sequence.png"
    sequences.write_picture(folder, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    sequences.write_picture(folder, path)
    report = read_report([folder])
    drawn = of_sequence(report.sequences[0], report.utility_figure).draw()
    assert [each.get_ylabel().split(" (")[0] for each in drawn.axes] == [
        "KnowMem(retain)",
        "KnowMem(each request)",
    ]
    assert list(lines_of(drawn.axes[0])) == ["seq (sustainability)", "retain-only"]
    assert len(lines_of(drawn.axes[1])) == 4


def test_a_sequence_with_nothing_to_draw_is_one_line(write_sequence, tmp_path):
    folder = write_sequence(tmp_path / "seq", requests=["a"], change=lambda stage, step, found: found.clear())
    with pytest.raises(InputError, match="seq cannot be drawn"):
        sequences.write_picture(folder, tmp_path / "one.png")
    assert not (tmp_path / "one.png").exists()
    assert sequences.as_text(folder).splitlines()[-1].split() == ["1", "a"]
    page = as_html(read_report([folder]))
    assert "The stages have no figure in common that tells utility" in page


def test_a_sequence_without_a_finished_stage(write_sequence, tmp_path):
    folder = write_sequence(tmp_path / "seq", requests=["a"])
    alter(folder / "stage-1" / "manifest.json", lambda each: each.update(status="running"))
    with pytest.raises(InputError, match="stage-1 is not finished"):
        sequences.as_text(folder)


def test_the_command_takes_the_folder_of_a_sequence(cli, four):
    ended = cli("report", *four, "--output", "out")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.count("Requests one after another: ") == 4
    assert "wrote out/sequence_utility.png" in ended.out
    assert "wrote out/sequence_requests_4.png" in ended.out


EVIL = "</script><script>alert(1)</script>/../%2e\"'&amp;\x1b[31m\n_$x_{1}"


def test_names_of_requests_are_texts(write_sequence, tmp_path):
    def page(text):
        folder = write_sequence(tmp_path / re.sub("/", "\N{FRACTION SLASH}", text[:40]), requests=[text, "b"])
        report = read_report([folder])
        assert "\x1b" not in sequences.as_text(folder) + as_markdown(report) + as_latex(report)
        sequences.write_picture(folder, tmp_path / "one.png")
        return as_html(report)

    evil, plain = page(EVIL), page("plain")
    assert re.findall("<(script|h3|table|article)", evil) == re.findall("<(script|h3|table|article)", plain)
    ids = re.findall(r'\sid="([^"]*)"', evil)
    assert len(ids) == len(set(ids))
    assert [each for each in ids if not re.fullmatch(r"[\w.-]+", each)] == []
    for each in re.findall(r'aria-(?:labelledby|describedby)="([^"]*)"', evil):
        assert each in ids
