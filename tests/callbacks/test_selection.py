"""Selection rules on hand-written metrics, and in runs: the checkpoint kept, the export, the end of training."""

import re

import pytest
import torch
from lightning import Trainer
from safetensors.torch import load_file

from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.callbacks.selection import (
    BestCheckpoint,
    BestForgetQuality,
    FirstForgotten,
    LowestForgetProbability,
    NearestToUnseen,
)
from dipo_pl.errors import InputError
from dipo_pl.evaluation.verdict_rules import Thresholds
from dipo_pl.metrics.result import EvaluationResult, SetResult
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.storage.fingerprints import weights_fingerprint
from dipo_pl.storage.run_folder import RunFolder

TARGET = {"step": 0, "model_utility": 0.8, "forget_rouge_l_recall": 1.0, "forget_quality_log10_p": -9.0}
RETAIN = {"forget_rouge_l_recall": 0.4}
UNMEASURED = {"forget_probability": 0.1}


def quality(log10_p, utility):
    return {"forget_quality_log10_p": log10_p, "model_utility": utility}


def test_best_forget_quality():
    rule = BestForgetQuality(utility_share=0.9, patience=2)
    scores = [
        rule.score(quality(*each), TARGET, RETAIN) for each in ((-9, 0.8), (-1, 0.71), (-2, 0.73), (0, 0.4))
    ]
    lost = [-1e6 - (0.9 - 0.71 / 0.8), -1e6 - 0.4]
    assert scores == [-9, pytest.approx(lost[0], abs=1e-6), -2, pytest.approx(lost[1], abs=1e-6)]
    assert rule.score(UNMEASURED, TARGET, RETAIN) is None
    for scores, ends in [((-3,), 0), ((-3, -4), 0), ((-3, -4, -5), 1), ((-3, -4, -2), 0), ((-3, -3, -3), 1)]:
        assert bool(rule.ends(scores)) == bool(ends)


def test_first_forgotten():
    rule = FirstForgotten()
    scores = [rule.score({"forget_rouge_l_recall": each}, TARGET, RETAIN) for each in (0.9, 0.41, 0.4, 0.1)]
    assert scores == [pytest.approx(-0.5), pytest.approx(-0.01), 0.0, 0.0]
    assert [bool(rule.ends(scores[:count])) for count in (1, 2, 3)] == [False, False, True]
    assert rule.score(UNMEASURED, TARGET, RETAIN) is None


KNOWING = {"step": 0, "forget_probability": 0.9, "model_utility": 0.8, "retain_probability": 0.9}


def found(forget, utility):
    return {"forget_probability": forget, "model_utility": utility}


@pytest.mark.parametrize(("metrics", "target", "retain", "score"), [
    (found(0.4, 0.8), {}, None, -0.4),
    (found(0.4, 0.8), {"holdout_probability": 0.1}, None, -0.3),
    (found(0.4, 0.8), {"holdout_probability": 0.1}, {"forget_probability": 0.3}, -0.1),
    # Below what a model has that never saw the rows, nothing is gained.
    (found(0.05, 0.8), {"holdout_probability": 0.1}, None, 0.0),
    (found(0.05, 0.7), {"holdout_probability": 0.1}, None, -1e6 - (0.95 - 0.875)),
    ({"forget_probability": 0.4, "retain_probability": 0.2}, {}, None, None),  # answers were not generated
    ({"forget_probability": 0.4, "retain_probability": 0.45}, {"model_utility": 0.0}, None, -1e6 - (0.95 - 0.5)),
    (found(0.4, 0.0), {"model_utility": 0.0, "retain_probability": 0.0}, None, -0.4),  # nothing to lose
])  # fmt: skip
def test_lowest_forget_probability(metrics, target, retain, score):
    given = LowestForgetProbability().score(metrics, KNOWING | target, retain)
    assert given == (None if score is None else pytest.approx(score))


@pytest.mark.parametrize(("scores", "end"), [
    ([-0.8, -0.5], None),
    ([-0.8, 0.0], "P(forget) is that of a model that never saw the rows"),
    ([-0.5, -0.5, -0.6], "forgetting did not go on in the last 2 evaluations"),
    ([-0.5, -0.6, -0.4], None),
    ([-0.5, -1e6 - 0.2, -1e6 - 0.3], "utility was lost in the last 2 evaluations"),
    ([-0.5, -1e6 - 0.3, -1e6 - 0.2], None),  # utility comes back
    ([-1e6 - 0.2, -1e6 - 0.3], None),
    ([-1e6 - 0.2, -1e6 - 0.3, -1e6 - 0.4], "utility was lost in the last 2 evaluations"),
    ([], None),
])  # fmt: skip
def test_lowest_forget_probability_ends(scores, end):
    assert LowestForgetProbability(patience=2).ends(scores) == end


UNSEEN = {"holdout_probability": 0.1, "forget_extraction_strength": 0.6, "holdout_extraction_strength": 0.1}


@pytest.mark.parametrize(("metrics", "target", "retain", "score"), [
    # Of the way from 0.9 to the holdout's 0.1, 0.2 may be left, which is one unit.
    (found(0.5, 0.8), {"holdout_probability": 0.1}, None, -0.5 / 0.2),
    (found(0.26, 0.8), {"holdout_probability": 0.1}, None, -1.0),
    (found(0.05, 0.8), {"holdout_probability": 0.1}, None, 0.0),
    # Probability is gone, of extraction strength half is left: 1 plus half of 2.5 - 1.
    (found(0.1, 0.8) | {"forget_extraction_strength": 0.35}, UNSEEN, None, -1.75),
    # All are met: the one that is forgotten least counts.
    (found(0.1, 0.8) | {"forget_extraction_strength": 0.15}, UNSEEN, None, -0.5),
    # log 0.0025 / log 0.05 = 2, beside a probability that is gone; p = 0.2236 is half of the way to the threshold.
    (found(0.1, 0.8) | {"forget_quality_log10_p": -2.60206}, {"holdout_probability": 0.1}, None, -1.5),
    (found(0.1, 0.8) | {"forget_quality_log10_p": -0.650515}, {"holdout_probability": 0.1}, None, -0.5),
    # A retain-only model counts before a holdout, and 0 where there is neither.
    (found(0.5, 0.8), {"holdout_probability": 0.1}, {"forget_probability": 0.5}, 0.0),
    (found(0.45, 0.8), {}, None, -0.5 / 0.2),
    # Erased too far: the rows are told from unseen ones by it.
    (found(0.0, 0.8) | {"membership_min_k_auc": 0.2}, {"holdout_probability": 0.1}, None, -2.0),
    (found(0.0, 0.8) | {"membership_min_k_auc": 0.45}, {"holdout_probability": 0.1}, None, -0.5),
    # Utility is lost, or was not measured now; nothing was known.
    (found(0.1, 0.4), {"holdout_probability": 0.1}, None, -1e6 - 0.45),
    ({"forget_probability": 0.1}, {}, None, None),
    (found(0.1, 0.8), {"forget_probability": 0.1, "holdout_probability": 0.1}, None, 0.0),
])  # fmt: skip
def test_nearest_to_unseen(metrics, target, retain, score):
    given = NearestToUnseen().score(metrics, KNOWING | target, retain)
    assert given == (None if score is None else pytest.approx(score))


@pytest.mark.parametrize(("rows", "auc", "score"), [
    # As in the verdict: up to twice the standard error, 2 sqrt(41 / 4800) of 20 rows each.
    (20, 0.65, -0.15 / 0.18484),
    (20, 0.8, -1 - (0.3 / 0.18484 - 1) / 2),
    # Of 10 rows each the error is larger.
    (10, 0.7, -0.2 / 0.26458),
    (10, 1.0, -1 - (0.5 / 0.26458 - 1) / 2),
])  # fmt: skip
def test_nearest_to_unseen_does_not_follow_the_noise_of_few_rows(rows, auc, score):
    rule = NearestToUnseen()
    rule.rows = {"forget": rows, "holdout": rows}
    metrics = found(0.1, 0.8) | {"membership_min_k_auc": auc}
    assert rule.score(metrics, KNOWING | {"holdout_probability": 0.1}, None) == pytest.approx(score, rel=1e-4)


def test_nearest_to_unseen_has_the_verdicts_evidence_and_thresholds():
    rule = NearestToUnseen()
    # Without other evidence than wrong answers, of the way from 0.9 to their 0.1.
    rule.wrong_answers = {"forget": 0.1}
    assert rule.score(found(0.26, 0.8), KNOWING, None) == pytest.approx(-1)
    rule.thresholds = Thresholds(removed=0.9)
    assert rule.score(found(0.26, 0.8), KNOWING, None) == pytest.approx(-2)
    rule.thresholds = Thresholds(removed=1.0)
    assert rule.score(found(0.11, 0.8), KNOWING, None) < -1
    assert rule.score(found(0.1, 0.8), KNOWING, None) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("rule", "score"), [(LowestForgetProbability(), -0.7), (NearestToUnseen(), -0.7 / 0.8 / 0.2)]
)
def test_the_request_that_is_forgotten_least_decides(rule, score):
    rule.forgotten = ("request_1", "request_2")
    target = KNOWING | {
        "holdout_probability": 0.1,
        "request_1_probability": 0.9,
        "request_2_probability": 0.9,
    }
    now = found(0.45, 0.8) | {"request_1_probability": 0.8, "request_2_probability": 0.1}
    assert rule.score(now, target, None) == pytest.approx(score)


def test_an_evaluation_without_answers_has_no_score():
    target = KNOWING | {
        "forget_rouge_l_recall": 0.9,
        "holdout_rouge_l_recall": 0.2,
        "holdout_probability": 0.1,
    }
    rule = NearestToUnseen()
    assert rule.score(found(0.1, 0.8), target, None) is None
    assert rule.score(found(0.1, 0.8) | {"forget_rouge_l_recall": 0.2}, target, None) == 0
    # Where there was nothing to forget by it, it need not be there.
    assert rule.score(found(0.1, 0.8), target | {"forget_rouge_l_recall": 0.2}, None) == 0


def test_lost_utility_is_worse_than_any_deviation():
    rule = NearestToUnseen()
    for thresholds in (
        Thresholds(removed=1.0),
        Thresholds(forget_quality=1.0),
        Thresholds(forget_quality=1 - 1e-9),
    ):
        rule.thresholds = thresholds
        half = found(0.5, 0.8) | {"forget_quality_log10_p": -9.0}
        lost = found(0.0, 0.1) | {"forget_quality_log10_p": 0.0}
        target = KNOWING | {"holdout_probability": 0.1}
        assert rule.score(half, target, None) > rule.score(lost, target, None)
        assert rule.score(half, target, None) < -1


def test_nearest_to_unseen_ends():
    rule = NearestToUnseen(patience=2)
    assert rule.ends([-3.0, -1.0]) == "the forget rows are like rows that the model never saw"
    assert rule.ends([-3.0, -1.1]) is None
    assert rule.ends([-2.0, -2.5, -3.0]) == "forgetting did not go on in the last 2 evaluations"


def test_metrics_that_a_rule_needs():
    for target, lacks in [
        ({"retain_probability": 1}, r"P\(forget\)"),
        ({"forget_probability": 1}, "a utility"),
    ]:
        with pytest.raises(
            InputError, match=f"needs {lacks}, which is not measured: .* --selection.rule null"
        ):
            LowestForgetProbability().score(target, target, None)
    with pytest.raises(InputError, match="needs Model Utility, which is not measured"):
        BestForgetQuality().score(quality(-1, 0.8), {"step": 0}, RETAIN)
    with pytest.raises(
        InputError, match=r"needs Forget Quality, which is not measured: .* \(perturbed_answer"
    ):
        BestForgetQuality().score(UNMEASURED, {"step": 0, "model_utility": 0.8}, RETAIN)
    with pytest.raises(
        InputError, match="needs 'forget_knowledge', which is not in the evaluation before training"
    ):
        FirstForgotten("forget_knowledge").score(TARGET, TARGET, RETAIN)


@pytest.mark.parametrize(("rule", "line"), [
    (BestForgetQuality(), "needs Forget Quality, which is not measured: the forget rows lack wrong answers"),
    # It was measured with other holdout rows.
    (FirstForgotten("membership_min_k_auc"), "'membership_min_k_auc', which is not in the retain-only model's result on"),
])  # fmt: skip
def test_a_retain_result_that_a_rule_cannot_use(rule, line):
    evaluation = ForgetQuality(retain_result="some")
    forget = SetResult({}, [{"log_truth_ratio": 0.1}, {}])
    evaluation.retain = EvaluationResult("dipo_pl", {"membership_min_k_auc": 0.5}, {"forget": forget})
    evaluation.retain_metrics = {}
    with pytest.raises(InputError, match=re.escape(line)):
        rule.check(evaluation)


def unlearn(learned, retain_only, *more):
    return (
        "fit", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", learned / "hf",
        "--forget_quality.retain_result", retain_only, "--model.optimizer.lr", "1e-3", "--name", "run",
        "--selection.rule", *more,
    )  # fmt: skip


def first_forgotten(learned, retain_only, *more):
    return (
        *unlearn(learned, retain_only, "FirstForgotten", "--selection.stop", "true", *more),
        "--selection.rule.metric", "forget_probability",
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "runs" / "run")


def kept(run):
    return [path.name for path in run.checkpoints.glob("epoch*.ckpt")]


@pytest.mark.parametrize(("options", "line"), [
    (("BestForgetQuality", "--forget_quality.retain_result", "null"), "needs a retain-only model: give its result as"),
    (("FirstForgotten", "--forget_quality.retain_result", "null"), "needs a retain-only model: give its result as"),
    (("FirstForgotten", "--selection.rule.metric", "nope"), "needs 'nope', which is not in the retain-only model's"),
    (("BestForgetQuality", "--forget_quality.generate_every", "0"), "needs Model Utility, which is not measured"),
    (("BestForgetQuality", "--forget_quality.utility_sets", "[]"), "needs Model Utility, which is not measured"),
    (("FirstForgotten", "--trainer.num_sanity_val_steps", "0"), "FirstForgotten needs the evaluation before training"),
    (("LowestForgetProbability", "--model", "FineTuning", "--data.train_on", "all"), "FineTuning makes none forget"),
    (("BestForgetQuality", "--checkpoint.monitor", "retain_probability"),
     "selection.rule and checkpoint.monitor (retain_probability) both say"),
])  # fmt: skip
def test_what_a_rule_lacks_is_reported_before_anything_is_measured(
    cli, learned, retain_only, run, options, line
):
    ended = cli(*unlearn(learned, retain_only, *options))
    assert ended.code == 2
    assert line in ended.errors[0]
    assert not run.path.exists()


def test_a_monitor_that_is_not_measured_is_refused_before_training(cli):
    ended = cli("fit", "--config", "smoke.yaml", "--checkpoint.monitor", "nought")
    assert ended.code == 2
    assert (
        "checkpoint.monitor must be a measured metric (got 'nought'): give one of forget_prob"
        in ended.errors[0]
    )


def test_a_monitor_that_is_measured_at_some_evaluations(cli, learned, run):
    ended = cli(
        "fit", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", learned / "hf",
        "--checkpoint.monitor", "model_utility", "--checkpoint.mode", "max", "--forget_quality.generate_every", "2",
        "--trainer.max_epochs", "3", "--name", "run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    utility = {each["step"]: each["model_utility"] for each in run.read_metrics() if "model_utility" in each}
    assert list(utility) == [0, 6, 9]
    best = max((6, 9), key=lambda step: (utility[step], -step))
    assert [name.partition("step=")[2] for name in kept(run)] == [f"{best}.ckpt"]


def test_the_best_checkpoint_is_exported_and_represents_the_run(cli, learned, retain_only, run):
    ended = cli(*unlearn(learned, retain_only, "BestForgetQuality", "--trainer.max_epochs", "4"))
    assert ended.code == 0, ended.err
    target, *trained = run.read_metrics()

    def score(each):
        useful = each["model_utility"] >= 0.95 * target["model_utility"]
        return (useful, each["forget_quality_log10_p"] if useful else each["model_utility"])

    best = max(trained, key=score)
    assert run.final_step == best["step"] == run.read_manifest()["exported_step"]
    (name,) = kept(run)
    assert f"step={best['step']}" in name
    saved = torch.load(run.checkpoints / name, weights_only=True)["state_dict"]
    exported = load_file(run.hf / "model.safetensors")
    assert all(torch.equal(tensor, saved[f"model.{name}"]) for name, tensor in exported.items())
    # A run that starts from it records the same.
    assert run.read_manifest()["exported_weights"] == weights_fingerprint(Pretrained(str(run.hf)).model())


def test_an_evaluation_without_a_score_is_never_the_best(cli, learned, retain_only, run, tmp_path):
    """Answers are generated only at the last evaluation, so that only it has a Model Utility."""
    seldom = ("--forget_quality.generate_every", "10", "--trainer.max_epochs", "3")
    ended = cli(*unlearn(learned, retain_only, "BestForgetQuality", *seldom))
    assert ended.code == 0, ended.err
    assert [each["step"] for each in run.read_metrics() if "model_utility" in each] == [0, 9]
    assert run.final_step == run.read_manifest()["exported_step"] == 9
    assert kept(run) == ["epoch=2-step=9.ckpt"]
    keeper = BestCheckpoint(tmp_path, monitor="selection", mode="max", save_top_k=1)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert not keeper.check_monitor_top_k(trainer, torch.tensor(float("-inf")))
    assert keeper.check_monitor_top_k(trainer, torch.tensor(-1e6))


def test_training_ends_once_the_forget_set_is_forgotten(cli, learned, retain_only, run):
    command = first_forgotten(learned, retain_only, "--trainer.max_epochs", "30")
    ended = cli(*command)
    assert ended.code == 0, ended.err
    assert (
        "training ends: forget_probability is at the retain-only model's (selection.rule FirstForgotten)"
        in ended.err
    )
    records = run.read_metrics()
    bar = RunFolder(retain_only).read_metrics()[-1]["forget_probability"]
    assert [each["forget_probability"] <= bar for each in records] == [False] * (len(records) - 1) + [True]
    assert len(records) < 30
    before = run.read_manifest()
    assert before["exported_step"] == records[-1]["step"]
    # Killed between its last checkpoint and its end, the run is not trained further.
    run.add_to_manifest(status="running")
    again = cli(*command)
    assert again.code == 0, again.err
    after = run.read_manifest()
    assert (after["status"], after["steps"]) == ("finished", before["steps"])
    assert after["policy"]["weights_at_end"] == before["policy"]["weights_at_end"]
    assert after["exported_step"] == before["exported_step"]


def test_an_evaluation_ahead_of_the_checkpoint_does_not_end_training(cli, learned, retain_only, run):
    """Killed after a measurement and before its checkpoint, the run resumes from the checkpoint before."""
    command = (*first_forgotten(learned, retain_only), "--model.optimizer.lr", "1e-6")
    assert cli(*command, "--trainer.max_epochs", "2").code == 0
    EvaluationResult("dipo_pl", {"forget_probability": 0.0}, {}, step=9).save(run)
    ended = cli(*command, "--trainer.max_epochs", "4")
    assert ended.code == 0, ended.err
    assert run.read_manifest()["steps"] == 12


def test_a_run_without_a_retain_only_model_ends_when_it_has_forgotten(cli, learned, run):
    words = unlearn(learned, "null", "LowestForgetProbability", "--selection.stop", "true")
    words = (*words, "--selection.rule.utility_share", "0.3")
    ended = cli(*words, "--trainer.max_epochs", "30", "--forget_quality.generate_every", "0")
    assert ended.code == 0, ended.err
    assert "training ends: P(forget) is that of a model that never saw the rows" in ended.err
    target, *trained = run.read_metrics()
    assert len(trained) < 30
    reached = [each["forget_probability"] <= target["holdout_probability"] for each in trained]
    assert reached == [False] * (len(trained) - 1) + [True]
    assert run.read_manifest()["exported_step"] == trained[-1]["step"]


def test_a_rule_knows_how_many_rows_are_measured(cli, learned, run, monkeypatch):
    monkeypatch.setattr(NearestToUnseen, "score", lambda rule, *_: print("rows", dict(rule.rows)))
    words = unlearn(learned, "null", "NearestToUnseen", "--forget_quality.generate_every", "0")
    ended = cli(*words, "--trainer.max_steps", "1", "--data.evaluation_rows", "2")
    assert ended.code == 0, ended.err
    assert "rows {'forget': 2, 'retain': 2, 'holdout': 2}" in ended.out
    assert run.read_manifest()["data"]["evaluation"]["forget"]["of"] > 2


def test_a_best_checkpoint_that_never_was_is_no_reason_to_lose_the_last_one(cli, learned, run):
    words = unlearn(learned, "null", "LowestForgetProbability", "--trainer.limit_val_batches", "1")
    ended = cli(
        *words,
        "--data.evaluation_tokens",
        "512",
        "--trainer.max_epochs",
        "1",
        "--forget_quality.generate_every",
        "0",
    )
    assert ended.code == 0, ended.err
    assert "exported the last one (step 3)" in ended.err
    assert (run.hf / "model.safetensors").is_file()
