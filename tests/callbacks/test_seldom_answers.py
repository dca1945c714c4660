"""Answers at few evaluations: those that end a run have them, and the exported checkpoint is measured in full."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dipo_pl.callbacks.selection_rules import NearestToUnseen
from dipo_pl.storage.run_folder import RunFolder

SELDOM = ("--forget_quality.generate_every", "100")


def unlearn(learned, name, *more):
    return (
        "fit", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", learned / "hf",
        "--name", name, *more,
    )  # fmt: skip


def most_probable(learned, name, *more):
    """Return a command that exports the first checkpoint of three, which knows the most of the rows."""
    best = ("--checkpoint.monitor", "forget_probability", "--checkpoint.mode", "max", "--export.best", "true")
    return unlearn(learned, name, "--model.optimizer.lr", "1e-3", "--trainer.max_epochs", "3", *best, *more)


def values_of(run):
    """Return the records without what depends on how the run was made or ended."""
    return {
        each["step"]: {name: value for name, value in each.items() if not name.startswith("verdict")}
        for each in run.read_metrics()
    }


def answered(run):
    return [step for step, each in values_of(run).items() if "forget_rouge_l_recall" in each]


def has_texts(run, step):
    rows = json.loads(run.evaluation_file(step).read_text())["sets"]["forget"]["rows"]
    return all("generation" in each for each in rows)


def test_the_exported_checkpoint_is_measured_in_full(cli, learned, tmp_path):
    runs = {name: RunFolder(tmp_path / "runs" / name) for name in ("always", "seldom")}
    assert cli(*most_probable(learned, "always")).code == 0
    command = most_probable(learned, "seldom", *SELDOM)
    ended = cli(*command)
    assert ended.code == 0, ended.err
    always, seldom = runs["always"], runs["seldom"]
    assert seldom.final_step == always.final_step == 3
    assert answered(always) == [0, 3, 6, 9]
    assert answered(seldom) == [0, 3, 9]
    found, expected = values_of(seldom), values_of(always)
    assert list(found) == [0, 3, 6, 9]
    assert {step: found[step] for step in (0, 3, 9)} == {step: expected[step] for step in (0, 3, 9)}
    assert found[6].items() < expected[6].items()
    assert [has_texts(seldom, step) for step in (0, 3, 6, 9)] == [True, True, False, True]
    verdicts = [each.read_manifest() for each in (seldom, always)]
    assert verdicts[0]["verdict_step"] == verdicts[1]["verdict_step"] == 3
    rouge = [next(r for r in each["verdict_reasons"] if r["rule"] == "forget_rouge") for each in verdicts]
    assert rouge[0] == rouge[1]
    assert rouge[0]["value"] is not None
    assert "resuming" not in ended.err

    # Each value of the board is there once.
    events = EventAccumulator(str(seldom.path))
    events.Reload()
    steps = {tag: [each.step for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert {len(seen) - len({*seen}) for seen in steps.values()} == {0}
    assert sorted(steps["forget/rouge_l_recall"]) == [0, 3, 9]

    # A threshold is where all curves have a point.
    assert steps["forget/probability_threshold"] == [0, 3, 6, 9]

    # Killed before this last evaluation, the run makes it again and nothing else.
    before = found | {3: {name: found[3][name] for name in found[6]}}
    seldom.metrics.write_text("".join(json.dumps(each) + "\n" for each in before.values()))
    seldom.add_to_manifest(status="running")
    again = cli(*command)
    assert again.code == 0, again.err
    assert values_of(seldom) == found
    assert seldom.read_manifest()["verdict_reasons"] == verdicts[0]["verdict_reasons"]


@pytest.mark.parametrize("rule", ["NearestToUnseen", "LowestForgetProbability"])
def test_an_evaluation_that_ends_training_has_answers(cli, learned, tmp_path, rule):
    words = ("--selection.rule", rule, "--selection.stop", "true", "--selection.rule.utility_share", "0.3")
    words += ("--model.optimizer.lr", "1e-3", "--trainer.max_epochs", "30", "--verdict.membership", "1")
    ended = cli(*unlearn(learned, "run", *words, *SELDOM))
    assert ended.code == 0, ended.err
    run = RunFolder(tmp_path / "runs" / "run")
    steps = [each["step"] for each in run.read_metrics()]
    assert len(steps) < 30
    assert "training ends: " in ended.err
    assert answered(run) == [0, steps[-1]]
    assert run.final_step == steps[-1]
    # By teacher forcing alone it would have ended at the same step or before.
    alone = cli(*unlearn(learned, "alone", *words, "--forget_quality.generate_every", "0"))
    assert alone.code == 0, alone.err
    assert RunFolder(tmp_path / "runs" / "alone").final_step <= run.final_step


def test_answers_that_are_still_known_let_training_go_on(cli, learned, tmp_path, monkeypatch):
    """The rule would end training by probability alone at each evaluation; answers say otherwise until the last."""

    def score(rule, metrics, target, retain):
        return 0.0 if "forget_rouge_l_recall" not in metrics else -2.0 - metrics["forget_probability"]

    monkeypatch.setattr(NearestToUnseen, "score", score)
    words = ("--selection.rule", "NearestToUnseen", "--selection.stop", "true", "--trainer.max_epochs", "3")
    ended = cli(*unlearn(learned, "run", "--model.optimizer.lr", "1e-3", *words, *SELDOM))
    assert ended.code == 0, ended.err
    run = RunFolder(tmp_path / "runs" / "run")
    assert answered(run) == [0, 3, 6, 9]
    assert "training ends: " not in ended.err


@pytest.mark.parametrize(("rule", "expected"), [
    (("--selection.rule", "NearestToUnseen", "--selection.stop", "true", "--selection.rule.patience", "100"), [0, 15, 18]),
    # It would be chosen from all evaluations, and these are as many as ever.
    (("--selection.rule", "NearestToUnseen"), [0, 3, 6, 9, 12, 15, 18]),
    ((), [0, 3, 6, 9, 12, 15, 18]),
])  # fmt: skip
def test_answers_are_seldom_by_default_where_a_rule_ends_training(cli, learned, tmp_path, rule, expected):
    words = ("--model.optimizer.lr", "1e-8", "--trainer.max_epochs", "6")
    ended = cli(*unlearn(learned, "run", *words, "--forget_quality.max_new_tokens", "2", *rule))
    assert ended.code == 0, ended.err
    run = RunFolder(tmp_path / "runs" / "run")
    assert answered(run) == sorted({*expected, run.final_step})


def test_an_evaluation_that_is_gone_is_made_again(cli, learned, tmp_path):
    command = unlearn(learned, "run", "--trainer.max_epochs", "2")
    assert cli(*command).code == 0
    run = RunFolder(tmp_path / "runs" / "run")
    found = values_of(run)
    run.metrics.write_text("".join(json.dumps(each) + "\n" for each in [*found.values()][:-1]))
    run.add_to_manifest(status="running")
    ended = cli(*command)
    assert ended.code == 0, ended.err
    assert values_of(run) == found
    assert run.final_step == run.read_manifest()["verdict_step"] == 6


def test_a_run_that_a_rule_has_ended_is_not_trained_further(cli, learned, tmp_path, monkeypatch):
    """Answers of the exported checkpoint, measured after training, make its score worse than a later one's."""

    def score(rule, metrics, target, retain):
        return {0: -9.0, 3: -2.0}.get(metrics["step"], -3.0) - 9.0 * ("forget_rouge_l_recall" in metrics)

    monkeypatch.setattr(NearestToUnseen, "score", score)
    words = ("--selection.rule", "NearestToUnseen", "--selection.stop", "true", "--trainer.max_epochs", "20")
    command = unlearn(learned, "run", *words, "--selection.rule.patience", "2", *SELDOM)
    ended = cli(*command)
    assert ended.code == 0, ended.err
    run = RunFolder(tmp_path / "runs" / "run")
    assert (run.final_step, run.read_manifest()["steps"]) == (3, 9)
    assert answered(run) == [0, 3, 9]
    weights = run.read_manifest()["policy"]["weights_at_end"]
    run.add_to_manifest(status="running")
    again = cli(*command)
    assert again.code == 0, again.err
    manifest = run.read_manifest()
    assert (run.final_step, manifest["steps"], manifest["policy"]["weights_at_end"]) == (3, 9, weights)
    # With more patience it goes on.
    more = cli(*command, "--selection.rule.patience", "3", "--trainer.max_epochs", "21")
    assert more.code == 0, more.err
    assert run.read_manifest()["steps"] > 9


def test_a_run_of_an_earlier_default_is_this_run(cli, learned, tmp_path):
    command = unlearn(learned, "run", "--trainer.max_epochs", "1")
    assert cli(*command, "--forget_quality.generate_every", "1").code == 0
    ended = cli(*command)
    assert (ended.code, "nothing to do" in ended.out) == (0, True)
