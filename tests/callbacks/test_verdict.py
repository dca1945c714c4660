"""The verdict of runs: the same one in every file and on the terminal, after a kill, on a finished run; its exit code."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dipo_pl.callbacks.collapse_guard import CollapseGuard
from dipo_pl.callbacks.verdict import Judge
from dipo_pl.errors import InputError
from dipo_pl.metrics.result import EvaluationResult, SetResult
from dipo_pl.storage.run_folder import RunFolder


def unlearn(learned, *more):
    return (
        "fit", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", learned / "hf",
        "--model.optimizer.lr", "1e-3", "--trainer.max_epochs", "1", "--name", "run", *more,
    )  # fmt: skip


def entries(record):
    return {name: record[name] for name in ("verdict", "verdict_reasons")}


def test_the_same_verdict_everywhere_and_again(cli, learned, retain_only, tmp_path):
    words = unlearn(learned, "--forget_quality.retain_result", retain_only, "--require", "forgotten")
    ended = cli(*words)
    run = RunFolder(tmp_path / "runs" / "run")
    manifest, (target, judged) = run.read_manifest(), run.read_metrics()
    assert (manifest["status"], manifest["verdict_step"], judged["step"]) == ("finished", 3, 3)
    assert entries(manifest) == entries(judged)
    assert "verdict" not in target
    first = manifest["verdict_reasons"][0]
    assert (first["rule"], first["evidence"]) == ("forget_probability", "retain-only model")
    # With one epoch of so few steps, a part of it stays.
    assert manifest["verdict"] in ("partly", "not_forgotten")
    assert ended.code == 3
    for text in ((run.hf / "README.md").read_text(), ended.out):
        assert first["text"] in text
    (tag,) = (
        each for each in EventAccumulator(str(run.path)).Reload().Tags()["tensors"] if "verdict" in each
    )
    assert tag == "verdict/text_summary"
    block = ended.out[ended.out.index("verdict: ") :]
    # The finished run repeats it, also with another requirement.
    again = cli(*words)
    assert (again.code, again.out.endswith(block)) == (3, True)
    assert cli(*words[:-2]).code == 0
    assert cli(*words[:-1], "partly").code == (0 if manifest["verdict"] == "partly" else 3)
    # Killed between the last evaluation and the verdict, a run judges when it resumes.
    run.add_to_manifest(status="trained", verdict=None, verdict_reasons=None)
    run.add_to_evaluation(0, verdict=None, verdict_reasons=None)
    assert cli(*words).code == 3
    assert entries(run.read_manifest()) == entries(run.read_metrics()[-1]) == entries(manifest)
    # Other thresholds make another run.
    other = cli(*words, "--verdict.utility", "0.5")
    assert "verdict.utility: 0.95 there, 0.5 here" in other.errors[0]


def test_fine_tuning_has_no_verdict(learned):
    run = RunFolder(learned)
    assert not {"verdict", "verdict_step"} & {*run.read_manifest(), *run.read_metrics()[-1]}


TARGET = {"step": 0, "forget_probability": 0.9, "holdout_probability": 0.1, "retain_probability": 0.8}
FLUENT = {"forget_rouge_l_recall": 0.05, "retain_repetition": 0.0, "retain_word_entropy": 2.0}


def run_of(tmp_path, *records, exported=None, **sets):
    run = RunFolder(tmp_path / "run")
    run.evaluation.mkdir(parents=True, exist_ok=True)
    run.metrics.write_text("".join(json.dumps(FLUENT | each) + "\n" for each in records))
    run.add_to_manifest(exported_step=exported)
    run.evaluation_file(0).write_text(EvaluationResult("dipo_pl", {}, sets).text())
    return run


def verdict(run, steps=10, **thresholds):
    return Judge(**thresholds).of_run(run, None, CollapseGuard(), steps)


def texts(verdict, rule):
    return [each.text for each in verdict.reasons if each.rule == rule]


def trained(step, forget, retain=0.8):
    return {
        "step": step,
        "forget_probability": forget,
        "holdout_probability": 0.1,
        "retain_probability": retain,
    }


def test_the_exported_step_is_judged_and_a_better_one_is_named(tmp_path):
    run = run_of(tmp_path, TARGET, trained(1, 0.3), trained(2, 0.1), trained(3, 0.1, 0.1), exported=3)
    found = verdict(run)
    # Utility is a tenth of what it was: the low figures show nothing.
    assert found.name == "cannot_tell"
    assert texts(found, "collapse") == ["P(retain) fell from 0.800 to 0.100 at step 3"]
    (better,) = texts(found, "warnings")
    assert "step 2 would have been 'forgotten', but step 3 was exported" in better
    run.add_to_manifest(exported_step=2)
    # Only what the judged weights do not show is a warning.
    assert (verdict(run).name, texts(verdict(run), "warnings")) == (
        "forgotten", ["P(retain) fell from 0.800 to 0.100 at step 3"],
    )  # fmt: skip
    run.add_to_manifest(exported_step=1)
    assert verdict(run).name == "partly"
    assert verdict(run, removed=0.7).name == "forgotten"


def test_a_run_that_stalls_and_one_that_keeps_no_utility(tmp_path):
    found = verdict(run_of(tmp_path, TARGET, trained(5, 0.9, 0.72), trained(10, 0.88, 0.6)))
    assert found.name == "not_forgotten"
    stalled, lost = texts(found, "warnings")
    assert stalled.startswith("forgetting has stalled: the probability of forget answers is 0.900")
    assert lost == "no evaluation after training began kept 95% of P(retain) (the best 90%)"


def test_wrong_answers_stand_in_for_a_holdout(tmp_path):
    rows = [{"nll": [0.1, 0.1, 1.0, 2.0]}, {"nll": [0.1, 0.1, 1.0, 2.0]}]
    target = {name: value for name, value in TARGET.items() if "holdout" not in name}
    reason = verdict(run_of(tmp_path, target, trained(1, 0.3), forget=SetResult({}, rows))).reasons[0]
    # (e^-1 + e^-2) / 2
    assert (reason.evidence, "to the 0.252 that the target has for wrong answers" in reason.text) == (
        "wrong answers", True,
    )  # fmt: skip


def test_an_evaluation_that_is_made_again_is_read_again(tmp_path):
    target = {name: value for name, value in TARGET.items() if "holdout" not in name}
    for loss, said in [(1.0, "to the 0.368"), (2.0, "to the 0.135")]:
        rows = [{"nll": [0.1, 0.1, loss]}]
        reason = verdict(run_of(tmp_path, target, trained(1, 0.3), forget=SetResult({}, rows))).reasons[0]
        assert said in reason.text


@pytest.mark.parametrize(("measured", "said"), [
    ({"rows": 300, "of": 400}, ["only 300 of the 400 forget rows were measured (data.evaluation_rows)"]),
    ({"rows": 400}, []),
])  # fmt: skip
def test_forget_rows_that_were_not_measured_are_told(tmp_path, measured, said):
    run = run_of(tmp_path, TARGET, trained(1, 0.1))
    run.add_to_manifest(data={"evaluation": {"forget": measured}})
    assert texts(verdict(run), "warnings") == said


@pytest.mark.parametrize(("to_forget", "found"), [
    (["request_1", "request_2"], "not_forgotten"),
    (["request_2"], "forgotten"),
    (None, "forgotten"),  # of an earlier version, which judged the latest request
])  # fmt: skip
def test_all_requests_are_judged_that_the_run_was_to_forget(tmp_path, to_forget, found):
    known = dict.fromkeys(("request_1_probability", "request_2_probability"), 0.9)
    answers = dict.fromkeys(("request_1_rouge_l_recall", "request_2_rouge_l_recall"), 0.05)
    now = trained(5, 0.5) | known | answers | {"request_2_probability": 0.1}
    run = run_of(tmp_path, TARGET | known | answers, now)
    sets = {each: {"rows": 2} for each in ("forget", "request_1", "request_2")}
    run.add_to_manifest(data={"evaluation": sets}, **({} if to_forget is None else {"to_forget": to_forget}))
    assert verdict(run).name == found


@pytest.mark.parametrize(("records", "exported"), [
    ((), None),
    ((TARGET,), None),
    ((trained(3, 0.1),), None),
    # The exported weights are another step's.
    ((TARGET, trained(3, 0.1)), 2),
])  # fmt: skip
def test_without_an_evaluation_before_or_after_nothing_can_be_told(tmp_path, records, exported):
    found = verdict(run_of(tmp_path, *records, exported=exported))
    assert found.name == "cannot_tell"
    assert found.reasons[0].text.startswith("there is no evaluation")


def test_thresholds_that_contradict_each_other():
    with pytest.raises(
        InputError, match=r"verdict.partly must be at most verdict.removed \(got 0.8 and 0.7\)"
    ):
        Judge(removed=0.7, partly=0.8)


def test_evaluations_without_answers_are_no_better_ones(tmp_path):
    said = {"forget_rouge_l_recall": 0.8, "holdout_rouge_l_recall": 0.1, "model_utility": 0.6}
    target = TARGET | said
    ended = trained(10, 0.1) | said | {"model_utility": 0.5}
    found = verdict(run_of(tmp_path, target, trained(5, 0.3), ended))
    assert found.name == "not_forgotten"
    (lost,) = texts(found, "warnings")
    assert (
        lost
        == "no evaluation of the 1 with answers after training began kept 95% of Model Utility (the best 83%)"
    )
    # With answers it would be one.
    answered = trained(5, 0.3) | said | {"forget_rouge_l_recall": 0.3}
    found = verdict(run_of(tmp_path, target, answered, ended))
    assert any("step 5 would have been 'partly forgotten'" in each for each in texts(found, "warnings"))
