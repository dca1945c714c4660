"""`fit --tune`: which learning rates are tried, which one is used, and that nothing finished is repeated."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only

from dipo_pl.commands import tuning
from dipo_pl.commands.tuning import Trial, chosen, next_rate, outcome
from dipo_pl.metrics.result import EvaluationResult, SetResult
from dipo_pl.storage.run_folder import RunFolder

LOST = -1e6


def search(first: float, score) -> tuple[list[float], float]:
    found: list[Trial] = []
    while (rate := next_rate(first, found)) is not None:
        found.append(Trial(rate, score(rate), ""))
    return [each.rate for each in found], chosen(found).rate


@pytest.mark.parametrize(("score", "tried", "best"), [
    # Forgets more the higher the rate is, until utility is lost.
    (lambda rate: -5 + rate * 1e4 if rate < 1e-4 else LOST, [1e-5, 2.5e-5, 6.25e-5, 1.56e-4], 6.25e-5),
    # Forgotten at once, or at the second one.
    (lambda rate: -1.0, [1e-5], 1e-5),
    (lambda rate: rate * 1e5 - 3, [1e-5, 2.5e-5], 2.5e-5),
    # Utility is lost at once, and kept below.
    (lambda rate: LOST if rate > 2e-6 else -5, [1e-5, 4e-6, 1.6e-6], 1.6e-6),
    # Nothing helps; the search ends.
    (lambda rate: LOST - rate, [1e-5, 4e-6, 1.6e-6, 6.4e-7], 6.4e-7),
    (lambda rate: -5 + rate, [1e-5, 2.5e-5, 6.25e-5, 1.56e-4, 3.9e-4], 3.9e-4),
    # A higher rate forgets less.
    (lambda rate: -5 - rate, [1e-5, 2.5e-5], 1e-5),
])  # fmt: skip
def test_rates_go_up_while_it_helps_or_down_until_utility_is_kept(score, tried, best):
    assert search(1e-5, score) == (tried, best)


QUICK = ("--config", "smoke.yaml", "--data.evaluation_rows", "3", "--forget_quality.max_new_tokens", "2")


def test_the_run_has_the_chosen_rate_and_nothing_finished_is_repeated(cli, monkeypatch):
    monkeypatch.setattr(
        tuning, "TRIAL", tuning.TRIAL | {"trainer.max_steps": 1, "trainer.val_check_interval": 1}
    )
    ended = cli("fit", "--tune", *QUICK, "--trainer.max_steps", "1")
    assert ended.code == 0, ended.err
    told = [line for line in ended.err.splitlines() if line.startswith("dipo-pl: tune: ")]
    (line,) = [each for each in told if each.endswith(", chosen")]
    config = yaml.safe_load(Path("runs/smoke/config.yaml").read_text())
    rate = config["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    assert line.startswith(f"dipo-pl: tune: learning rate {rate:.3g}: P(forget) ")
    # The model of smoke.yaml knows nothing of its rows.
    (trial,) = Path("runs/smoke-tune").iterdir()
    assert json.loads((trial / "manifest.json").read_text())["status"] == "finished"
    assert not (trial / "hf").exists()
    before = {each: each.stat().st_mtime_ns for each in Path("runs").rglob("*") if each.is_file()}
    again = cli("fit", "--tune", *QUICK, "--trainer.max_steps", "1")
    assert again.code == 0, again.err
    assert {each: each.stat().st_mtime_ns for each in Path("runs").rglob("*") if each.is_file()} == before


def test_a_rate_that_diverges_is_too_high_and_the_search_goes_on(cli, monkeypatch):
    words = (
        "--model.optimizer.lr",
        "1e30",
        "--trainer.gradient_clip_val",
        "null",
        "--trainer.max_epochs",
        "1",
    )
    monkeypatch.setattr(
        tuning, "TRIAL", tuning.TRIAL | {"trainer.max_steps": 4, "trainer.val_check_interval": 1}
    )
    monkeypatch.setattr(tuning, "FACTOR", 1e33)
    ended = cli("fit", "--tune", *QUICK, *words)
    assert ended.code == 0, ended.err
    told = [
        line.removeprefix("dipo-pl: tune: ") for line in ended.err.splitlines() if ": tune: learning" in line
    ]
    assert told[0] == "learning rate 1e+30: ended with numbers that are not finite"
    assert told[-1].startswith("learning rate 0.001: P(forget) ")
    assert told[-1].endswith(", chosen")
    # The short run has as many steps as it says, though the run has an epoch of 3; its verdict is not the run's.
    assert json.loads(Path("runs/smoke-tune/0.001/manifest.json").read_text())["steps"] == 4
    assert ended.out.count("verdict: ") == 1


@pytest.mark.parametrize(("rule", "score"), [
    (None, -1e6 - 0.45),
    ({"class_path": "dipo_pl.callbacks.selection.FirstForgotten", "init_args": {"metric": "x"}}, -1e6 - 0.45),
    ({"class_path": "dipo_pl.callbacks.selection.NearestToUnseen", "init_args": {"utility_share": 0.5}},
     -1.6),
])  # fmt: skip
def test_short_runs_are_compared_by_the_rule_of_the_run(tmp_path, rule, score):
    run = RunFolder(tmp_path)
    target = {"step": 0, "forget_probability": 0.5, "retain_probability": 0.8}
    records = target, {"step": 5, "forget_probability": 0.4, "retain_probability": 0.4}
    run.metrics.write_text("".join(json.dumps(each) + "\n" for each in records))
    run.add_to_manifest(data={"evaluation": {}})
    found = outcome(
        1e-5, run, {"selection": {"rule": rule}, "forget_quality": {}, "verdict": {"removed": 0.5}}
    )
    assert found.score == pytest.approx(score)


@pytest.mark.parametrize(("holdout", "same"), [("h", True), ("other", False)])
def test_membership_of_a_retain_only_model_counts_on_the_same_holdout_rows(tmp_path, holdout, same):
    run, seen = RunFolder(tmp_path), []
    run.metrics.write_text("".join(json.dumps({"step": each}) + "\n" for each in (0, 5)))
    run.add_to_manifest(data={"evaluation": {"holdout": {"rows": 1, "fingerprint": holdout}}})
    metrics = {"membership_min_k_auc": 0.4, "forget_probability": 0.1}
    result = EvaluationResult("dipo_pl", metrics, {"holdout": SetResult({}, [], "h")})
    (tmp_path / "retain.json").write_text(result.text())
    rule = SimpleNamespace(score=lambda each, target, retain: seen.append(retain) or 0.0)
    tuning.scored(
        rule, run, {"forget_quality": {"retain_result": str(tmp_path / "retain.json")}, "verdict": {}}
    )
    (retain,) = seen
    assert ("membership_min_k_auc" in retain, retain["forget_probability"]) == (same, 0.1)


def test_other_ranks_say_nothing(monkeypatch, capsys):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    tuning._say("a second time")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("options", "line"), [
    ("--config smoke.yaml --model FineTuning --data.train_on all", "--tune searches the learning rate of an unlearning run"),
    ("--config smoke.yaml --model.optimizer.lr 0", "--tune needs a first learning rate > 0 (got model.optimizer.lr 0"),
    ("--config smoke.yaml --model.betta 1", "there is no option 'betta'"),
])  # fmt: skip
def test_what_cannot_be_tuned_is_refused(cli, options, line):
    ended = cli("fit", "--tune", *options.split())
    assert ended.code == 2
    assert line in ended.errors[0]
    assert not Path("runs").exists()
