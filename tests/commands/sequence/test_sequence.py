"""`dipo-pl sequence` on real runs: start, forget set and evaluation of each stage, resumption, refusals."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from sequence_inputs import NAMES, write_requests, write_rows

from dipo_pl.commands.sequence.stages import weights_sample
from dipo_pl.storage.files import locked

RUN = ("sequence", "deletions.yaml", "--name", "s")


def stage(folder: Path, number: int | str, name: str = "s") -> Path:
    return folder / "runs" / name / f"stage-{number}"


def config(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_stage_starts_from_the_one_before(cli, inputs, manifest, metrics):
    ended = cli(*RUN)
    assert ended.code == 0, ended.err
    first, second = stage(inputs, 1), stage(inputs, 2)
    assert manifest(first)["policy"]["source"] == "runs/target/hf"
    assert manifest(second)["policy"]["source"] == "runs/s/stage-1/hf"
    assert manifest(second)["policy"]["weights_at_start"] == manifest(first)["exported_weights"]
    assert config(second)["data"]["init_args"]["forget"] == NAMES[1]
    assert manifest(second)["to_forget"] == ["request_2"]
    assert "earlier_requests" in {each["rule"] for each in manifest(second)["verdict_reasons"]}
    assert manifest(second)["data"]["forget"]["rows"] == 10
    # All 60 people are in the file to be kept, and those who asked are not.
    assert [manifest(each)["data"]["retain"]["rows"] for each in (first, second)] == [50, 40]
    record = {"name": "s", "mode": "sustainability", "stage": 2, "requests": NAMES[:2]}
    start = weights_sample(first / "hf")
    assert start is not None
    assert manifest(second)["sequence"] == record | {"start": start, "retain_only": None}
    before, *_, after = metrics(second)
    left = metrics(first)[-1]
    assert before["request_1_probability"] == pytest.approx(left["request_1_probability"], rel=1e-5)
    assert "request_2_probability" in after
    assert "request_2_probability" not in left
    assert after["request_2_probability"] == after["forget_probability"]
    assert "requests/2.jsonl" in ended.out


def test_the_command_of_the_tutorial(cli, inputs, manifest):
    """The shipped config names no rows to forget: the file of requests does."""
    write_requests(inputs, configs=["jsonl.yaml"], requests=NAMES[:1])
    options = "--model.policy.path runs/target/hf --data.retain everyone.jsonl --data.evaluation_rows 4"
    words = (*options.split(), "--data.prompt", "QuestionAnswer", "--forget_quality.max_new_tokens", "4")
    ended = cli("sequence", "deletions.yaml", *words, "--name", "deletions", "--trainer.max_steps", "1")
    assert ended.code == 0, ended.err
    run = stage(inputs, 1, "deletions")
    assert config(run)["data"]["init_args"]["forget"] == NAMES[0]
    assert manifest(run)["data"]["forget"]["rows"] == 10
    advice = "give one that saw none of the requests as retain_only, in the file of requests or after dipo-pl sequence"
    assert advice in ended.out + ended.err


def test_together_stages_start_from_the_target(cli, inputs, manifest):
    ended = cli(*RUN, "--mode", "scalability")
    assert ended.code == 0, ended.err
    first, second = stage(inputs, 1), stage(inputs, 2)
    starts = {manifest(each)["policy"]["weights_at_start"] for each in (first, second)}
    assert len(starts) == 1
    assert config(second)["data"]["init_args"]["forget"] == NAMES[:2]
    assert [manifest(each)["data"]["forget"]["rows"] for each in (first, second)] == [10, 20]
    # Each request is judged by itself.
    assert [manifest(each)["to_forget"] for each in (first, second)] == [
        ["request_1"],
        ["request_1", "request_2"],
    ]
    reason = manifest(second)["verdict_reasons"][0]["text"]
    assert reason.startswith(("P(forget) of request 1 ", "P(forget) of request 2 "))


def test_nothing_finished_is_repeated_and_a_new_request_is_one_stage_more(cli, inputs, manifest, metrics):
    words = (*RUN, "--data.evaluation_rows", "50")
    assert cli(*words).code == 0
    before = contents(stage(inputs, 1)) | contents(stage(inputs, 2))
    # Utility is of the same rows at each stage, although the first stage still trains on the second request as retained.
    first, second = (manifest(stage(inputs, number))["data"]["evaluation"]["retain"] for number in (1, 2))
    assert first == second
    assert first["rows"] == 40
    write_requests(inputs, requests=NAMES)
    ended = cli(*words)
    assert ended.code == 0, ended.err
    assert {path: path.read_bytes() for path in before} == before
    assert manifest(stage(inputs, 3))["policy"]["source"] == "runs/s/stage-2/hf"
    assert {f"request_{number}_probability" for number in (1, 2, 3)} < metrics(stage(inputs, 3))[-1].keys()


def test_killed_in_its_second_stage_it_resumes_exactly(killed, cli, inputs, manifest):
    killed(lambda trainer: "stage-2" in trainer.default_root_dir and trainer.current_epoch == 1, *RUN)
    first = contents(stage(inputs, 1))
    assert manifest(stage(inputs, 2))["status"] == "running"
    ended = cli(*RUN)
    assert ended.code == 0, ended.err
    assert contents(stage(inputs, 1)) == first
    assert manifest(stage(inputs, 2))["resumed_at_steps"]
    assert cli(*RUN[:-1], "whole").code == 0
    weights, whole = (load_file(stage(inputs, 2, name) / "hf/model.safetensors") for name in ("s", "whole"))
    assert weights.keys() == whole.keys()
    assert all(weights[key].equal(whole[key]) for key in weights)


def test_the_retain_only_model_is_evaluated_for_each_stage(cli, refused, inputs, manifest, metrics):
    write_requests(inputs, requests=NAMES[:2], retain_only="runs/target")
    ended = cli(*RUN)
    assert ended.code == 0, ended.err
    for number in (1, 2):
        evaluated = stage(inputs, f"{number}-retain_only")
        assert manifest(evaluated)["command"] == "validate"
        assert manifest(evaluated)["policy"]["source"] == "runs/target/hf"
        retain_result = config(stage(inputs, number))["forget_quality"]["retain_result"]
        assert retain_result == f"runs/s/stage-{number}-retain_only"
    # The given model is the target, from which the first stage starts.
    assert metrics(stage(inputs, 1))[0]["forget_quality"] == 1
    sets = manifest(stage(inputs, "2-retain_only"))["data"]["evaluation"]
    assert sets["forget"] == manifest(stage(inputs, 2))["data"]["evaluation"]["forget"]
    line = refused(*RUN, "--retain_only", "runs/s/stage-2/hf")
    assert "stage-1 was compared with runs/s/stage-2/hf before that model changed" in line


def test_together_a_target_that_changed_is_refused(cli, refused, inputs):
    words = (*RUN, "--mode", "scalability", "--trainer.max_epochs", "1", "--model.policy.path", "mine")
    shutil.copytree(inputs / "runs" / "target" / "hf", inputs / "mine")
    assert cli(*words).code == 0
    shutil.rmtree(stage(inputs, 2))
    shutil.rmtree(inputs / "mine")
    shutil.copytree(stage(inputs, 1) / "hf", inputs / "mine")
    assert "stage-1 started from mine before that model changed" in refused(*words)


@pytest.mark.parametrize("name", ["null", "a: b.jsonl", "-x.jsonl", "12", "sp ace.jsonl"])
def test_a_request_is_the_file_of_that_name(cli, inputs, name, manifest):
    (inputs / NAMES[0]).rename(inputs / name)
    write_requests(inputs, requests=[name])
    ended = cli(*RUN, "--trainer.max_epochs", "1", "--forget_quality.generate_every", "0")
    assert ended.code == 0, ended.err
    assert manifest(stage(inputs, 1))["sequence"]["requests"] == [name]
    assert config(stage(inputs, 1))["data"]["init_args"]["forget"] == name


@pytest.mark.parametrize("mode", ["sustainability", "scalability"])
def test_folds_of_news(cli, tmp_path, mode, metrics):
    """Each fold's questions have examples of their own."""
    quick = ("--forget_quality.generate_every", "0", "--samples.rows", "0", "--trainer.max_epochs", "1")
    target = ("--model", "FineTuning", "--data.train_on", "all", "--data.forget", '["fold_1", "fold_2"]')
    assert cli("fit", "--config", "smoke_news.yaml", *target, *quick, "--name", "target").code == 0
    write_requests(tmp_path, configs=["smoke_news.yaml"], requests=["fold_1", "fold_2"])
    policy = ("--model.policy", "Pretrained", "--model.policy.path", "runs/target/hf")
    ended = cli(*RUN, "--mode", mode, *policy, "--trainer.max_epochs", "1")
    assert ended.code == 0, ended.err
    assert "warning: no table" not in ended.err
    assert "fold_2" in ended.out.split("stage  request")[1]
    expected = {"request_1_knowledge", "request_2_knowledge", "retain_knowledge", "forget_verbatim"}
    assert expected < metrics(stage(tmp_path, 2))[-1].keys()


def test_later_stages_take_the_epochs_that_the_first_chose(cli, refused, inputs, manifest, metrics):
    write_requests(inputs, requests=NAMES[:2], retain_only="runs/target", epochs_of_first=True)
    rule = "--selection.rule FirstForgotten --selection.rule.metric forget_probability --selection.stop true"
    words = (*RUN, *rule.split(), "--trainer.max_epochs", "3")
    ended = cli(*words)
    assert ended.code == 0, ended.err
    chosen = manifest(stage(inputs, 1))["exported_step"]
    epochs = next(each["epoch"] for each in metrics(stage(inputs, 1)) if each["step"] == chosen)
    assert epochs == 1
    assert manifest(stage(inputs, 2))["epochs"] == 1
    assert config(stage(inputs, 2))["selection"]["rule"] is None
    shutil.rmtree(stage(inputs, 1))
    line = refused(*words)
    assert "stage-1 is not finished, and later stages, which take their number of epochs from it, are" in line


def test_a_store_of_reference_states_is_each_stages_own(cli, inputs):
    stored = ("--model.reference", "StoredStates", "--model.reference.path", "states")
    ended = cli(*RUN, *stored)
    assert ended.code == 0, ended.err
    assert sorted(path.name for path in (inputs / "states").iterdir()) == ["stage-1", "stage-2"]


def test_a_sample_of_weights_is_of_both_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("dipo_pl.commands.sequence.stages.SAMPLE", 4)
    samples = set()
    for content in (b"0123456789", b"1123456789", b"0123456780", b"01234567890"):
        (tmp_path / "model.safetensors").write_bytes(content)
        samples.add(weights_sample(tmp_path))
    assert len(samples) == 4
    assert weights_sample(tmp_path / "none") is None


class TestRefused:
    """Refused commands change nothing."""

    @pytest.fixture
    def done(self, cli, inputs) -> Path:
        assert cli(*RUN).code == 0
        return inputs

    def test_after_the_fact(self, refused, done):
        """Each fault in turn, on one finished sequence."""
        for words, message in (
            (("--mode", "scalability"), "mode must be sustainability, with which"),
            (("--model.forget_loss", "NPO"), "another configuration"),
            (("--trainer.max_epochs", "3"), "finished with another limit of epochs or steps"),
        ):
            assert message in refused(*RUN, *words)

        write_requests(done, requests=[NAMES[1], NAMES[0]])
        assert f"requests must be {NAMES[0]}, with which runs/s/stage-1 was made (got {NAMES[1]})" in refused(
            *RUN
        )

        write_requests(done, requests=NAMES[:2])
        rows = (done / NAMES[1]).read_text()
        (done / NAMES[1]).write_text("".join(rows.splitlines(keepends=True)[1:]))
        assert f"the rows of {NAMES[1]} have changed since runs/s/stage-2 forgot them" in refused(*RUN)
        (done / NAMES[1]).write_text(rows)

        write_requests(done, requests=NAMES)
        for gone in ("hf", "hf/config.json", "hf/model.safetensors"):
            (stage(done, 2) / gone).rename(done / "elsewhere")
            message = "stage-2 is finished, and its model, from which the next stage starts, is missing"
            assert message in refused(*RUN)
            (done / "elsewhere").rename(stage(done, 2) / gone)

        for path, change, message in (
            ("hf/model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1]),
             "stage-2 started from runs/s/stage-1/hf before that model changed"),
            ("manifest.json", lambda content: content[:50], "cannot read runs/s/stage-1/manifest.json"),
        ):  # fmt: skip
            content = (stage(done, 1) / path).read_bytes()
            (stage(done, 1) / path).write_bytes(change(content))
            assert message in refused(*RUN)
            (stage(done, 1) / path).write_bytes(content)

        shutil.rmtree(stage(done, 1) / "checkpoints")
        assert "another configuration" in refused(*RUN, "--model.forget_loss", "NPO")

        shutil.rmtree(stage(done, 2))
        shutil.copytree(done / "runs" / "target", stage(done, 2))
        assert "no stage of a sequence" in refused(*RUN)

    def test_requests_that_overlap(self, cli, refused, inputs, manifest):
        rows = [json.loads(line) for line in (inputs / NAMES[0]).read_text().splitlines()]
        others = [json.loads(line) for line in (inputs / NAMES[1]).read_text().splitlines()]
        write_rows(inputs / NAMES[1], rows[:3] + others)
        error = refused(*RUN)
        assert "requests/1.jsonl and requests/2.jsonl overlap: 3 of 13 rows" in error
        # Together, one may hold all of another, as MUSE's growing folds do, but not a part of it.
        assert "overlap" in refused(*RUN, "--mode", "scalability")
        write_rows(inputs / NAMES[1], rows + others)
        assert cli(*RUN, "--mode", "scalability", "--trainer.max_epochs", "1").code == 0
        assert manifest(stage(inputs, 2))["data"]["forget"]["rows"] == 20

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--mode", "both"), "mode must be sustainability or scalability (got 'both')"),
            (("--data.forget", "x.jsonl"), "--data.forget is set for each stage"),
            (("--data.requests=[x]",), "--data.requests is set for each stage"),
            (("--export.enabled", "false"), "set export.enabled true"),
            (("--model.policy", "FromConfig"), "model.policy"),
            (("--name", "a/b"), "--name must be the name of one folder (got 'a/b')"),
            (("--config", "nowhere.yaml"), "no config nowhere.yaml"),
            (("--trainer.max_epochs", "many"), "trainer.max_epochs"),
            (("--trainer.fast_dev_run", "true"), "trainer.fast_dev_run leaves no model for the next stage"),
        ],
    )
    def test_words(self, refused, inputs, words, message):
        assert message in refused(*RUN, *words)
        assert not (inputs / "runs" / "s").exists()

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({}, "lacks the key 'requests'"),
            ({"requests": []}, "requests must be a list of at least one text (got [])"),
            ({"requests": "1.jsonl"}, "requests must be a list of at least one text (got '1.jsonl')"),
            ({"requests": [1]}, "requests must be a list of at least one text (got [1])"),
            ({"requests": [NAMES[0]] * 2}, "requests must be a list without duplicates of requests/1.jsonl"),
            ({"requests": ["requests/9.jsonl"]}, "no file requests/9.jsonl"),
            ({"requests": NAMES, "request": 1}, "has the unknown key 'request'"),
            ({"requests": NAMES, "mode": 3}, "mode must be sustainability or scalability (got 3)"),
            ({"requests": NAMES, "retain_only": 3}, "must be a text or a list of at least one text (got 3)"),
            (
                {"requests": NAMES, "retain_only": ["a"]},
                "one model, or one for each of the 3 requests (got ['a'])",
            ),
            ({"requests": NAMES, "epochs_of_first": 1}, "epochs_of_first must be true or false (got 1)"),
            ({"requests": NAMES, "configs": "stage.yaml"}, "configs must be a list"),
        ],
    )
    def test_files(self, refused, inputs, keys, message):
        write_requests(inputs, **keys)
        assert message in refused(*RUN)

    @pytest.mark.parametrize("text", ["", "[]", "a: [", "3"])
    def test_what_is_no_file_of_requests(self, refused, inputs, text):
        (inputs / "deletions.yaml").write_text(text)
        assert "deletions.yaml" in refused(*RUN)

    @pytest.mark.parametrize("models", ["runs/nowhere", ["runs/target", "runs/nowhere"]])
    def test_a_missing_retain_only_model(self, refused, inputs, models):
        write_requests(inputs, requests=NAMES[:2], retain_only=models)
        assert "retain_only: no model folder runs/nowhere" in refused(*RUN)
        assert not (inputs / "runs" / "s").exists()

    def test_a_sequence_that_another_process_works_on(self, cli, refused, inputs):
        with locked(inputs / "runs" / "s"):
            assert "runs/s is used by another process" in refused(*RUN)
        assert cli(*RUN, "--trainer.max_epochs", "1").code == 0

    def test_an_empty_request(self, refused, inputs):
        (inputs / NAMES[1]).write_text("")
        assert f"{NAMES[1]} is empty" in refused(*RUN)
        assert not (inputs / "runs" / "s").exists()

    def test_data_without_named_forget_sets(self, refused, inputs):
        assert "FictitiousAuthors has only one forget set" in refused(*RUN, "--data", "FictitiousAuthors")
