"""Continual unlearning in reports: what each stage left, in numbers, tables and plots, and what is not compared."""

import re

import pytest
from sample_runs import PATH, THREE, alter, lines_of, plot, plot_names

from dipo_pl.errors import InputError
from dipo_pl.report.contents import read_report
from dipo_pl.report.formats import as_text
from dipo_pl.report.page import as_html
from dipo_pl.report.read import read_run
from dipo_pl.report.run import Kind
from dipo_pl.report.seeds import seed_groups
from dipo_pl.report.sequences import stage_folders, stage_table

# Metric of requests 1 to 3 at stages 0 to 3: before a stage as far as it was measured.
SUSTAINED = {1: {0: 0.9, 1: 0.1, 2: 0.17, 3: 0.24}, 2: {1: 0.89, 2: 0.1, 3: 0.17}, 3: {2: 0.88, 3: 0.1}}
SCALED = {1: {0: 0.9, 1: 0.1, 2: 0.17, 3: 0.24}, 2: {0: 0.9, 2: 0.1, 3: 0.17}, 3: {0: 0.9, 3: 0.1}}


def close(found, expected):
    assert {place: pytest.approx(known) for place, known in expected.items()} == found


def dropping(*keys, stage=None, step=None):
    """A change of metrics: removes these at one stage and step, or at all."""

    def change(at_stage, at_step, metrics):
        if stage in (None, at_stage) and step in (None, at_step):
            for key in [each for each in metrics if each.startswith(keys)]:
                del metrics[key]

    return change


@pytest.mark.parametrize(
    ("mode", "utility", "by_request"),
    [("sustainability", [0.7, 0.62, 0.54, 0.46], SUSTAINED), ("scalability", [0.7, 0.65, 0.6, 0.55], SCALED)],
)
def test_stages_with_utility_and_what_each_request_left(sequence, mode, utility, by_request):
    report = read_report([sequence(mode=mode)])
    (found,) = report.sequences
    assert (found.name, found.mode, found.requests) == ("seq", mode, tuple(THREE))
    assert [(each.number, each.request) for each in found.stages] == [(0, ""), (1, "a"), (2, PATH), (3, "c")]
    assert report.utility_metric == "retain_knowledge"
    assert [each.metrics["retain_knowledge"] for each in found.stages] == pytest.approx(utility)
    assert found.request_metric == "knowledge"
    close(found.by_request(), by_request)


def test_a_folder_stands_for_its_finished_stages_and_they_stand_for_it(sequence):
    folder = sequence(requests=[f"r{number}" for number in range(1, 11)])
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
    # Stage 5 began with the model of stage 4, which is not shown as a stage.
    assert 4 not in report.sequences[0].by_request()[5]
    assert [each.name for each in read_report([folder], unfinished=True).runs] == names
    # The folder of a run is no sequence.
    assert stage_folders(folder / "stage-1") == []
    (folder / "manifest.json").write_text("{}")
    assert stage_folders(folder) == []


def without_step_0(folder):
    for number in (1, 2, 3):
        metrics = folder / f"stage-{number}" / "metrics.jsonl"
        metrics.write_text(metrics.read_text().splitlines()[1] + "\n")


def other_value_at_the_start(stage, step, metrics):
    if stage > 1 and step == 0:
        metrics["request_1_knowledge"] = 0.55


HALVED = {place: {stage: value / 2 for stage, value in known.items()} for place, known in SUSTAINED.items()}
SINCE = {place: {stage: known[stage] for stage in range(place, 4)} for place, known in SUSTAINED.items()}


@pytest.mark.parametrize(("change", "alter_run", "metric", "stages", "expected"), [
    # What a stage measured itself counts before what the next one began with.
    (other_value_at_the_start, None, "knowledge", [0, 1, 2, 3], SUSTAINED),
    # Without evaluations before training there is no stage 0.
    (None, without_step_0, "knowledge", [1, 2, 3], SINCE),
    # Probability is shown where knowledge was measured less often.
    (dropping("request_2_knowledge"), None, "probability", [0, 1, 2, 3], HALVED),
    (dropping("request"), None, None, [0, 1, 2, 3], {}),
])  # fmt: skip
def test_metrics_of_requests(sequence, change, alter_run, metric, stages, expected):
    folder = sequence(change=change)
    if alter_run:
        alter_run(folder)
    report = read_report([folder])
    (found,) = report.sequences
    assert (found.request_metric, [each.number for each in found.stages]) == (metric, stages)
    close(found.by_request(), expected)
    if metric:
        label = plot(report, "sequence_requests").figure().axes[0].get_ylabel()
        assert label.startswith({"knowledge": "KnowMem", "probability": "P"}[metric] + "(each request)")
    else:
        assert "No metric of single requests was measured." in as_text(report)
        assert plot_names(report) & {"sequence_utility", "sequence_requests"} == {"sequence_utility"}


def test_sequences_of_one_name_are_told_apart(sequence):
    report = read_report([sequence(f"{top}/seq", requests=["a", "b"]) for top in "xy"])
    assert [each.name for each in report.runs] == [
        f"{top}/seq/stage-{number}" for top in "xy" for number in (1, 2)
    ]
    assert [each.name for each in report.sequences] == ["x/seq", "y/seq"]


@pytest.mark.parametrize(("shape", "change", "expected"), [
    ("tofu", None, "model_utility"),
    ("tofu", dropping("model_utility", stage=2, step=4), "retain_probability"),
    # Its Model Utility is then made of other parts; the model before the first request may lack it.
    ("tofu", dropping("retain_truth_ratio", stage=2, step=4), "retain_probability"),
    ("tofu", dropping("retain_truth_ratio", step=0), "model_utility"),
    ("muse", None, "retain_knowledge"),
    ("muse", dropping("retain_knowledge", stage=2, step=4), "retain_probability"),
])  # fmt: skip
def test_utility_is_the_first_metric_that_all_stages_have(sequence, shape, change, expected):
    report = read_report([sequence("whole", shape=shape), sequence("lacks", shape=shape, change=change)])
    assert report.utility_metric == expected
    assert len(lines_of(plot(report, "sequence_utility").figure().axes[0])) == 2


def test_no_utility_where_no_metric_is_in_all_stages(sequence):
    def change(stage, step, metrics):
        del metrics["retain_probability" if stage == 1 else "retain_knowledge"]

    report = read_report([sequence(change=change)])
    assert report.utility_metric is None
    assert plot_names(report) & {"sequence_utility", "sequence_requests"} == {"sequence_requests"}
    assert "KnowMem(retain)" not in stage_table(report.sequences[0], None).head
    nothing = read_report([sequence("nothing", requests=["a"], change=dropping(""))])
    assert plot_names(nothing) & {"sequence_utility", "sequence_requests"} == set()
    assert as_text(nothing).splitlines()[-1].split() == ["1", "a"]
    assert "The stages have no metric of utility in common" in as_html(nothing)


def test_none_is_best_of_models_with_different_forget_sets(four):
    report = read_report(four)
    assert report.results.best == frozenset()
    assert report.results.headlines.legend == "No value is marked: the models had different forget sets."
    results = read_report([each / "stage-2" for each in (four[0], four[2])]).results
    best = [row.name for index, row in enumerate(results.rows) if (index, "retain_knowledge") in results.best]
    assert best == ["dipo-sust/stage-2"]


def test_stages_are_no_repetitions_of_each_other(sequence):
    folder = sequence()
    stages = [folder / f"stage-{number}" for number in (1, 2, 3)]
    for seed, each in enumerate(stages):
        (each / "config.yaml").write_text((stages[0] / "config.yaml").read_text())
        alter(each / "manifest.json", lambda manifest, seed=seed: manifest.update(seed=seed))
    assert seed_groups([read_run(each) for each in stages]) == []
    for each in stages:
        alter(each / "manifest.json", lambda manifest: manifest.pop("sequence"))
    assert len(seed_groups([read_run(each) for each in stages])) == 1


def change_rows(folder, stage, name):
    """Give a set of a stage's evaluations other rows."""
    for path in (folder / f"stage-{stage}" / "evaluation").iterdir():
        alter(path, lambda each: each["sets"][name].update(fingerprint="0" * 64))


@pytest.mark.parametrize(
    ("name", "refused"),
    [("retain", False), ("forget", False), ("request_2", True), ("retain_questions", True)],
)
def test_sets_that_depend_on_the_requests_may_differ_between_stages_and_no_others(sequence, name, refused):
    folder = sequence()
    change_rows(folder, 2, name)
    if refused:
        with pytest.raises(InputError, match=rf"their {name} rows differ"):
            read_report([folder])
    else:
        report = read_report([folder])
        assert len(report.sequences[0].stages) == 4
        said = "seq: retain rows differ between stages, since requested rows are removed from them"
        assert report.notes == ((said,) if name == "retain" else ())


@pytest.mark.parametrize("name", ["forget", "retain", "request_1", "request_2"])
def test_one_stage_of_two_methods_has_the_same_rows(sequence, name):
    folders = [sequence(each) for each in ("dipo", "npo")]
    change_rows(folders[1], 2, name)
    with pytest.raises(InputError, match=rf"dipo/stage-2 and npo/stage-2 .* their {name} rows differ"):
        read_report([each / "stage-2" for each in folders])


def test_a_request_at_one_place_may_be_another_in_another_sequence(sequence):
    folders = [sequence(name, requests=[name, "c"]) for name in "ab"]
    assert len(read_report(folders).sequences) == 2
    change_rows(folders[1], 2, "request_2")
    with pytest.raises(InputError, match="their request_2 rows differ"):
        read_report([each / "stage-2" for each in folders])


def test_stages_follow_one_convention(sequence):
    last = sequence() / "stage-3" / "evaluation" / "step-000004.json"
    alter(last, lambda each: each.update(convention="dipo_pl"))
    with pytest.raises(InputError, match="follows the convention 'muse', seq/stage-3 'dipo_pl'"):
        read_report([last.parents[2]])


def test_ordinary_runs_beside_a_sequence_must_have_the_same_rows(sequence):
    plain, folder = sequence("plain", requests=["a", "b"]), sequence(requests=["a", "b"], retained=True)
    for number in (1, 2):
        alter(plain / f"stage-{number}" / "manifest.json", lambda each: each.pop("sequence"))
    assert len(read_report([plain / "stage-1", sequence("other", requests=["a", "b"])]).runs) == 3
    with pytest.raises(InputError, match="stage-1 and stage-2 are not comparable"):
        read_report([folder, plain / "stage-1", plain / "stage-2"])
    reference = folder / "stage-2-retain_only"
    assert read_report([folder / "stage-1"], retain_only=reference).sequences
    with pytest.raises(InputError, match="stage-2-retain_only and stage-1 are not comparable"):
        read_report([plain / "stage-1"], retain_only=reference)


def test_an_attack_on_a_stage_is_no_stage(sequence):
    folder = sequence()
    probe = {"kind": "quantization", "of": str(folder / "stage-2"), "bits": 8}
    alter(folder / "stage-3" / "manifest.json", lambda each: each.update(probe=probe))
    report = read_report([folder])
    assert [each.number for each in report.sequences[0].stages] == [0, 1, 2]
    assert [each.name for each in report.runs] == ["seq/stage-1", "seq/stage-2", "stage-3"]


def test_retain_only_models_given_by_hand_are_those_of_the_configs(sequence):
    folder = sequence(retained=True)
    for report in (read_report(sorted(folder.iterdir())), read_report([folder])):
        kinds = [row.kind for row in report.results.rows]
        assert kinds == [Kind.RETAIN_ONLY] * 3 + [Kind.BEFORE] + [Kind.UNLEARNING] * 3
        known = [each.retain_only.get("retain_knowledge") for each in report.sequences[0].stages]
        assert known == [None, *(pytest.approx(0.66 + 0.001 * stage) for stage in (1, 2, 3))]
    without = read_report([sequence("without")])
    assert all(each.retain_only == {} for each in without.sequences[0].stages)


def test_only_the_first_model_is_one_before_unlearning(sequence):
    for mode in ("sustainability", "scalability"):
        (before,) = (
            row for row in read_report([sequence(mode, mode=mode)]).results.rows if row.kind is Kind.BEFORE
        )
        assert before.run.name == f"{mode}/stage-1"
    alone = read_report([sequence() / "stage-2"])
    assert [row.kind for row in alone.results.rows] == [Kind.BEFORE, Kind.UNLEARNING]
    assert [each.number for each in alone.sequences[0].stages] == [2]


def test_forget_quality_is_not_computed_against_other_rows(sequence):
    folder = sequence(shape="tofu", change=dropping("forget_quality"))
    others = sequence("others", shape="tofu", retained=True)
    report = read_report([folder], retain_only=others / "stage-2-retain_only")
    assert [row.name for row in report.results.rows if "forget_quality" in row.metrics] == ["seq/stage-2"]
    assert re.findall(r"(\S+): largest gap", plot(report, "truth_ratio").description) == ["seq/stage-2"]
    assert (
        "seq/stage-1: no Forget Quality: it was measured without forget_quality.retain_result" in report.notes
    )


def test_stages_against_retain_only_models_of_their_own_need_no_note(sequence):
    report = read_report([sequence(shape="tofu", retained=True)])
    assert not any("different retain-only results" in each for each in report.notes)
    assert "Forget Quality" in stage_table(report.sequences[0], report.utility_metric).head
    assert plot_names(report) >= {
        "trajectory", "truth_ratio", "truth_ratio_2", "truth_ratio_3", "sequence_utility", "sequence_requests",
    }  # fmt: skip


@pytest.mark.parametrize(("entry", "said"), [
    ("three", "sequence must be a mapping (got three)"),
    ({"mode": "sustainabilty"}, "sequence.mode must be sustainability or scalability (got sustainabilty)"),
    ({"requests": "a"}, "sequence.requests must be a list of names (got a)"),
    ({"requests": ["a", 2]}, "sequence.requests must be a list of names (got ['a', 2])"),
    ({"stage": 3}, "sequence.stage must be 2, the number of requests (got 3)"),
    ({"stage": True, "requests": ["a"]}, "sequence.stage must be 1, the number of requests (got True)"),
])  # fmt: skip
def test_a_stage_with_a_wrong_entry_is_named_and_left_out(sequence, entry, said):
    folder = sequence()

    def change(manifest):
        manifest["sequence"] = manifest["sequence"] | entry if isinstance(entry, dict) else entry

    alter(folder / "stage-2" / "manifest.json", change)
    report = read_report([folder])
    assert report.left_out == (f"{folder}/stage-2: {said}",)
    assert len(report.runs) == 2


@pytest.mark.parametrize("change", [{"mode": "scalability"}, {"requests": ["a", "z"]}])
def test_stages_of_different_sequences_in_one_folder_are_refused(sequence, change):
    folder = sequence()
    alter(folder / "stage-2" / "manifest.json", lambda each: each["sequence"].update(change))
    with pytest.raises(InputError, match="are not stages of one sequence") as caught:
        read_report([folder])
    assert f"{folder}/stage-2" in str(caught.value)
    assert "\n" not in str(caught.value)
