"""What a study runs, skips, makes again and refuses; its runs are written without training."""

import re
import shutil
from pathlib import Path

import pytest
from study_inputs import ALL, RUN, SEED_0, STUDY, TUNED, done, records, write_study

from dipo_pl.commands.study import runner
from dipo_pl.storage.files import locked


def test_all_runs_in_order_with_the_chosen_learning_rate(cli, written):
    done(cli)
    assert written.made == ALL
    found = records()
    assert {each["status"] for each in found.values()} == {"finished"}
    # 1e-3 loses utility.
    assert {found[f"rows/{row}/seed-1"]["learning_rate"] for row in ("dipo", "npo-ce")} == {1e-4}
    assert found["tuning/dipo/0.001/seed-100"]["score"] < -1e6 < found["tuning/dipo/0.0001/seed-100"]["score"]
    command = found["rows/npo-ce/seed-1"]["command"]
    assert command == (
        "dipo-pl fit --config smoke.yaml --config npo.yaml --data.evaluation_rows 3 --forget_quality.max_new_tokens 4 "
        "--samples.rows 0 --model.policy Pretrained --model.policy.path runs/s/target/seed-1/hf "
        "--forget_quality.retain_result runs/s/retain_only/seed-1 --model.optimizer.lr 0.0001 --seed_everything 1 "
        "--name seed-1 --output_dir runs/s/rows/npo-ce"
    )
    assert found["rows/dipo/seed-1-relearn"]["command"] == (
        "dipo-pl relearn runs/s/rows/dipo/seed-1 --share 0.2 --steps 2 --lr 0.001"
    )
    record = found["rows/dipo/seed-0"]
    assert record["metrics"]["forget_probability"] == pytest.approx(0.48)
    assert (record["row"], record["seed"], record["verdict"], record["threads"]) == ("DiPO", 0, "partly", 1)
    start, end = record["trajectory"]
    assert start == {"step": 0, "forget_probability": 0.9, "retain_probability": 0.8}
    assert (end["step"], end["forget_probability"]) == (6, pytest.approx(0.48))
    assert record["machine"]["cores"] >= 1
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", record["commit"])
    assert written.environments[0]["OMP_NUM_THREADS"] == "1"


def test_one_target_and_one_retain_only_model_for_all_seeds(cli, written):
    models = {name: STUDY[name] | {"seed": 7} for name in ("target", "retain_only")}
    write_study(Path("s.yaml"), **models)
    done(cli)
    shared = ["target/seed-7", "retain_only/seed-7"]
    rows = [re.sub("^(target|retain_only).*", "", each) for each in ALL]
    assert written.made == [
        *shared,
        *filter(None, rows[:6]),
        "retain_only/seed-7-relearn",
        *filter(None, rows[6:]),
    ]
    for seed, key in (
        (0, "rows/dipo/seed-0"),
        (1, "rows/npo-ce/seed-1"),
        (100, "tuning/dipo/0.001/seed-100"),
    ):
        command = records()[key]["command"]
        for option in ("--model.policy.path runs/s/target/seed-7/hf", "retain_result runs/s/retain_only/seed-7 ",
                       f"--seed_everything {seed} "):  # fmt: skip
            assert option in command
    assert not [*Path("runs/s").rglob("hf")]
    # One model a seed is another study.
    write_study(Path("s.yaml"))
    assert "record(s) in runs/s/results.json were made with other" in done(cli, code=2)


def test_weights_are_removed_when_nothing_needs_them(cli, written):
    done(cli)
    assert not [*Path("runs/s").rglob("hf"), *Path("runs/s").rglob("checkpoints")]
    assert len([*Path("runs/s").rglob("metrics.jsonl")]) == len(ALL)
    write_study(Path("s.yaml"), keep_weights=True)
    done(cli, *RUN, "--name", "kept")
    assert len([*Path("runs/kept").rglob("hf")]) == len(ALL)


def test_nothing_is_done_twice(cli, written):
    done(cli)
    before = {path: path.stat().st_mtime_ns for path in Path("runs/s/rows").rglob("*")}
    done(cli)
    assert written.made == ALL
    assert {path: path.stat().st_mtime_ns for path in Path("runs/s/rows").rglob("*")} == before


def test_a_failure_does_not_stop_the_others_and_is_tried_again(cli, written):
    said = "some warning\ndipo-pl: error: no such layer\n"
    written.fails = {
        "npo.yaml.*--name seed-0": said,
        "fit.*train_on all.*--seed_everything 1 ": "Segmentation fault",
    }
    text = done(cli, code=1)
    ended = [each for each, record in records().items() if record["status"] == "finished"]
    gone = {"target/seed-1", *(each for each in ALL if re.search("rows/.*seed-1|rows/npo-ce/seed-0", each))}
    assert sorted(ended) == sorted({*ALL} - gone)
    assert "failed: NPO + CE, seed 0: no such layer (log: runs/s/logs/rows-npo-ce-seed-0.log)" in text
    assert "failed: target, seed 1: Segmentation fault (log:" in text
    assert "failed: DiPO, seed 1: not run: it needs target/seed-1" in text
    assert "failed: DiPO, seed 1, relearn: not run: it needs rows/dipo/seed-1" in text
    assert records()["rows/npo-ce/seed-0"]["error"] == "no such layer"
    assert "rows/dipo/seed-1" not in records()
    page = Path("runs/s/README.md").read_text()
    assert "rows/npo-ce/seed-0 **failed**: no such layer" in page
    assert "1 of 4 runs of the table are finished" in page
    written.fails = {}
    written.commands.clear()
    done(cli)
    assert written.made == [each for each in ALL if each in gone]


def test_a_learning_rate_that_diverges_is_not_chosen(cli, written, monkeypatch):
    write_study(Path("s.yaml"), rows={"DiPO": {}}, seeds=[0], after=None)
    written.fails = {"lr 0.0001": "dipo-pl: failed: the loss is nan (not finite)"}
    monkeypatch.setattr("dipo_pl.commands.tuning.has_diverged", lambda run: "0.0001" in str(run.path))
    done(cli)
    assert records()["tuning/dipo/0.0001/seed-100"]["diverged"]
    assert records()["rows/dipo/seed-0"]["learning_rate"] == 1e-3


def test_a_row_may_keep_its_configured_learning_rate(cli, written):
    rows = {"DiPO": {}, "fixed": {"tune": False, "options": {"model.optimizer.lr": 0.002}}}
    write_study(Path("s.yaml"), rows=rows, seeds=[0], after=None)
    done(cli)
    assert not any("tuning/fixed" in each for each in written.made)
    assert "--model.optimizer.lr 0.002" in written.commands[-1]
    assert records()["rows/fixed/seed-0"]["learning_rate"] is None


def test_one_row_runs_what_it_needs_and_nothing_else(cli, written):
    rows = {"DiPO": {}, "fixed": {"tune": False}}
    write_study(Path("s.yaml"), rows=rows, seeds=[0])
    done(cli, *RUN, "--row", "fixed")
    own = ["rows/fixed/seed-0", "rows/fixed/seed-0-relearn"]
    # The models of seed 100 serve the choice of the other row's learning rate.
    assert written.made == [*SEED_0[:3], *own]
    written.commands.clear()
    done(cli)
    assert {*TUNED[:4], "rows/dipo/seed-0", "rows/dipo/seed-0-relearn"} <= {*written.made}
    assert not {*own} & {*written.made}


def test_records_count_wherever_the_runs_were_made(cli, written):
    """One sitting makes one row, another on some other machine the rest, with nothing but results.json in common."""
    words = (*RUN, "--results", "shared")
    done(cli, *words, "--row", "DiPO", "--output_dir", "a")
    first = records("shared")
    assert not any("npo" in each for each in first)
    shutil.rmtree("a")
    written.commands.clear()
    written.weights = "v"
    text = done(cli, *words, "--output_dir", "b")
    page = Path("shared/README.md").read_text()
    again = ["target/seed-100", "target/seed-0", "target/seed-1"]
    needed = (
        [each for each in ALL if "npo" in each]
        + again
        + [each.replace("target", "retain_only") for each in again]
    )
    assert sorted(written.made) == sorted(needed)
    found = records("shared")
    assert sorted(found) == sorted(ALL)
    kept = {
        key: {name: value for name, value in each.items() if name != "made_again"}
        for key, each in found.items()
    }
    assert {key: kept[key] for key in first} == first
    assert [key for key, each in found.items() if "made_again" in each] == sorted({*needed} & {*first})
    for seed in (0, 1, 100):
        assert f"target, seed {seed}: made again with other weights" in text
        assert f"- retain_only/seed-{seed} was made again with **other weights**" in page
    assert text.count("other weights") == page.count("other weights") == 6
    written.commands.clear()
    done(cli, *words, "--output_dir", "c")
    assert written.commands == []


def test_a_probe_that_is_added_makes_the_models_again_that_it_needs(cli, written):
    write_study(Path("s.yaml"), after=None, rows={"DiPO": {}}, seeds=[0])
    done(cli)
    assert not Path("runs/s/rows/dipo/seed-0/hf").exists()
    write_study(Path("s.yaml"), rows={"DiPO": {}}, seeds=[0])
    written.commands.clear()
    text = done(cli)
    assert written.made == [each for each in SEED_0 if "npo" not in each]
    assert "DiPO, seed 0: made again, since other runs need its model, which is gone" in text


def test_a_study_by_another_name_goes_on(cli, written):
    words = (*RUN, "--name", "mine")
    done(cli, *words, "--row", "DiPO")
    written.commands.clear()
    done(cli, *words)
    assert written.commands
    assert all("npo" in each for each in written.made if "rows" in each or "tuning" in each)
    assert "Command: `dipo-pl study --config s.yaml --name mine`" in Path("runs/mine/README.md").read_text()
    Path("papers").mkdir()
    write_study(Path("papers/s.yaml"))
    done(cli, "study", "--config", "papers/s.yaml", "--name", "two", "--threads", "2", "--jobs", "1")
    page = Path("runs/two/README.md").read_text()
    assert "Command: `dipo-pl study --config papers/s.yaml --threads 2 --name two`" in page
    assert "    dipo-pl study --config papers/s.yaml --threads 2 --row ROW --name again\n" in page
    written.commands.clear()
    done(cli, *words)
    assert written.commands == []


def test_results_of_another_study_are_left_alone(cli, written, refused):
    done(cli)
    write_study(Path("t.yaml"))
    line = refused("study", "--config", "t.yaml", "--results", "runs/s", "--name", "s")
    assert "runs/s/results.json holds the results of the study s: give another --results or --name" in line


def test_options_of_every_run_follow(cli, written):
    without = dict.fromkeys(("learning_rate", "after", "target", "retain_only"))
    write_study(Path("s.yaml"), rows={"DiPO": {}}, seeds=[0], **without)
    done(cli, *RUN, "--model.policy.vocab_size=300", "--verdict.utility", "0.9")
    assert written.commands[0].endswith("--name seed-0 --output_dir runs/s/rows/dipo")
    assert "--model.policy.vocab_size 300 --verdict.utility 0.9" in written.commands[0]
    assert "model.policy.path" not in written.commands[0]
    assert (
        "dipo-pl study --config s.yaml --model.policy.vocab_size 300 --verdict.utility 0.9"
        in Path("runs/s/README.md").read_text()
    )


def test_a_path_elsewhere_is_the_same_configuration():
    from dipo_pl.commands.study.plan import Job, Kind
    from dipo_pl.commands.study.study_file import Recipe

    def fingerprint(seed: int = 0, rate: float | None = None, **options: object) -> str:
        return Job("k", Kind.ROW, seed, Recipe(["c"], options), ("content",)).fingerprint(rate)

    here = fingerprint(**{"data.path": "/here/tofu", "a": 1})
    assert here == fingerprint(**{"data.path": "there/tofu", "a": 1})
    others = [
        fingerprint(**{"data.path": "/here/muse", "a": 1}), fingerprint(**{"data.path": "/here/tofu", "a": 2}),
        fingerprint(1, **{"data.path": "/here/tofu", "a": 1}), fingerprint(0, 0.1, **{"data.path": "/here/tofu", "a": 1}),
    ]  # fmt: skip
    assert len({here, *others}) == 5


@pytest.mark.parametrize(("changes", "words", "line"), [
    ({"rows": {"A": {"configs": ["nope.yaml"]}}}, (), "no config nope.yaml, neither here nor among the shipped ones"),
    ({"rows": {"A": {"options": {"model.forget_loss.betta": 1}}}}, (), "row 'A': model.forget_loss: there is no option"),
    ({"rows": {"A": {"sweep": {"model.forget_loss.beta": ["x"]}}}}, (), "row 'A x': model.forget_loss.beta: "),
    ({"options": {"model.x": 1}}, (), "target: model: there is no option 'x'"),
    ({"rows": {"A": {}, "B": {"options": {"data.batch_size": 8}}}}, (), "rows 'A' and 'B' have the same configuration"),
    ({"target": {"configs": ["smoke.yaml"], "options": {"data.authors": "x"}}}, (), "target: data.authors"),
    ({"learning_rate": STUDY["learning_rate"] | {"rule": "Best"}}, (), "learning_rate.rule: selection.rule: there is no"),
    ({"after": {"audit": {"removed": 2}}}, (), "after.audit: removed must be a share in (0, 1] (got 2.0)"),
    ({"after": {"audit": {"config": "none.yaml"}}}, (), "no config none.yaml"),
    ({"after": {"relearn": {"steps": "many"}}}, (), "after.relearn: dipo-pl relearn: argument --steps: invalid int value"),
    ({"options": {"trainer.num_sanity_val_steps": 0}}, (), "has no evaluation before training, which learning_rate.rule"),
    ({}, ("--forget_quality.retain_result", "x"), "row 'DiPO': forget_quality.retain_result is the result of the study's"),
    ({"options": {"trainer.fast_dev_run": True}}, (), "target: trainer.fast_dev_run makes no results"),
    ({}, ("--row", "NOP"), "--row must name a row of s.yaml (got 'NOP'): DiPO, NPO + CE"),
    ({}, ("--jobs", "64", "--threads", "64"), "64 run(s) at a time with 64 thread(s) each need 4096 cores"),
    ({}, ("--name", "a/b"), "--name must be the name of one folder"),
    ({}, ("--data.path",), "options of the runs must be --key value (got '--data.path')"),
    ({}, ("extra", "x"), "options of the runs must be --key value (got 'extra')"),
    ({}, ("--seed_everything", "1"), "--seed_everything is set by the study for each run"),
    ({}, ("--model.optimizer.lr", "1"), "--model.optimizer.lr is chosen by learning_rate of s.yaml: leave it out, or give"),
    ({"after": {"relearn": {"stepz": 3}}}, (), "after.relearn: there is no option 'stepz' (did you mean steps?)"),
    ({"after": {"relearn": {"modle.optimizer.lr": 1}}}, (), "there is no option 'modle' (did you mean model?)"),
    ({"after": {"quantize": {"bitz": 4}}}, (), "after.quantize: there is no option 'bitz' (did you mean bits?)"),
    ({}, ("--report",), "runs/s/results.json has no records: run the study first"),
])  # fmt: skip
def test_what_is_wrong_is_refused_before_anything_runs(cli, written, refused, changes, words, line):
    write_study(Path("s.yaml"), **changes)
    assert line in refused("study", "--config", "s.yaml", *words)
    assert written.commands == []
    assert not Path("runs").exists()


@pytest.mark.parametrize(("content", "line"), [
    ('{"study": {}, "ru', "cannot read the results in runs/s/results.json (Unterminated string starting at: line 1"),
    ("[]", "runs/s/results.json does not hold the results of a study, study and runs: restore the file, or remove it"),
    ('{"study": {}}', "runs/s/results.json does not hold the results of a study, study and runs: restore the file"),
    (None, "cannot read the results in runs/s/results.json (Is a directory): restore the file, or remove it"),
])  # fmt: skip
def test_results_that_cannot_be_read_are_not_overwritten(cli, written, refused, content, line):
    path = Path("runs/s/results.json")
    path.parent.mkdir(parents=True)
    Path("runs/s/.lock").touch()
    path.mkdir() if content is None else path.write_text(content)
    assert line in refused(*RUN)
    assert content is None or path.read_text() == content


@pytest.mark.parametrize(("words", "line"), [
    (("--results", "s.yaml"), "cannot make the folder s.yaml, since s.yaml is a file: give another --results"),
    (("--results", "s.yaml/x"), "cannot make the folder s.yaml/x, since s.yaml is a file: give another --results"),
    (("--output_dir", "s.yaml"), "cannot make the folder s.yaml/s, since s.yaml is a file: give another --name"),
    (("--results", "/proc/nope"), "cannot make the folder /proc/nope (No such file or directory): give another --results"),
])  # fmt: skip
def test_a_folder_that_cannot_be_made_leaves_nothing(cli, written, refused, words, line):
    assert line in refused(*RUN, *words)
    assert not Path("runs/s").exists()


def test_a_report_of_records_of_another_file_says_so(cli, written):
    done(cli)
    assert "as it is now" not in done(cli, *RUN, "--report", "--threads", "2")
    page = Path("runs/s/README.md").read_text()
    write_study(Path("s.yaml"), seeds=[0, 1, 2])
    assert (
        "warning: runs/s/results.json is not of s.yaml as it is now: the report is of the study as it ran"
        in done(cli, *RUN, "--report")
    )
    assert Path("runs/s/README.md").read_text() == page


@pytest.mark.parametrize("folder", ["runs/s", "kept"])
def test_another_study_in_the_same_folder_is_refused(written, refused, folder):
    Path(folder).mkdir(parents=True)
    Path(folder, ".lock").touch()
    Path("runs/s").mkdir(parents=True, exist_ok=True)
    Path("runs/s/.lock").touch()
    option = "--results" if folder == "kept" else "--name"
    with locked(Path(folder)):
        line = refused(*RUN, "--results", "kept")
        assert (
            f"{folder} is used by another process: wait until it has ended, or give another {option}" in line
        )
        if folder == "kept":
            refused(*RUN, "--results", "kept", "--name", "other")
            assert not Path("runs/other").exists()
    assert written.commands == []


def test_a_full_disk_ends_the_study_in_one_line_and_its_runs_with_it(cli, written, monkeypatch):
    ended = []
    whole = runner.Results.put

    def put(self, key, record):
        if record["status"] == "finished" and key == "target/seed-0":
            from dipo_pl.errors import WriteError

            raise WriteError(self.path, OSError(28, "No space left on device"))
        whole(self, key, record)

    monkeypatch.setattr(runner.Results, "put", put)
    monkeypatch.setattr(runner.Runner, "_end_all", lambda self: ended.append(len(self.running)))
    text = done(cli, code=1)
    assert text.count("cannot write runs/s/results.json (No space left on device): free disk space") == 1
    assert ended == [0]
    monkeypatch.setattr(runner.Results, "put", whole)
    written.commands.clear()
    done(cli)
    assert written.made == [each for each in ALL if each not in TUNED]
