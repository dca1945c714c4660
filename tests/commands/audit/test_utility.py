"""Tasks of lm-eval in the score of an audit."""

import json
from statistics import harmonic_mean

import pytest
from audit_runs import make_runs
from own_tasks import write_tasks

from dipo_pl.attacks.score import scores
from dipo_pl.evaluation.lm_eval_tasks import LMEvalTasks
from dipo_pl.storage.run_folder import RunFolder

ATTACKS = "attacks: [{class_path: LogitLens}]\n"


@pytest.fixture
def world(tmp_path):
    make_runs(tmp_path)
    write_tasks(tmp_path / "tasks")
    (tmp_path / "plain.yaml").write_text(ATTACKS)
    return tmp_path


AUDIT = ("audit", "runs/unlearned", "--against", "runs/never", "--config", "plain.yaml")


def test_utility_averages_over_the_tasks_and_is_measured_once(world, cli):
    ended = cli(*AUDIT, "--utility", "{tasks: [first, second], include_path: tasks}")
    assert ended.code == 0, ended.err
    metrics = RunFolder(world / "runs" / "unlearned-audit").final_metrics
    now, before = (
        harmonic_mean([metrics[f"{model}lm_eval_{name}_acc"] for name in ("first", "second")])
        for model in ("", "target_")
    )
    assert before > 0
    assert metrics["utility_score"] == min(1.0, now / before)
    assert metrics["target_utility_score"] == 1
    assert metrics.keys() >= {"retain_only_lm_eval_first_acc", "retain_only_utility_score"}
    part = world / "runs" / "unlearned-audit" / "attacks" / "parts" / "utility-unlearned.json"
    content = json.loads(part.read_text())
    content["value"]["results"]["first"]["acc,none"] = 0.25
    part.write_text(json.dumps(content))
    (world / "runs" / "unlearned-audit" / "metrics.jsonl").unlink()
    assert cli(*AUDIT, "--utility", "{tasks: [first, second], include_path: tasks}").code == 0
    changed = RunFolder(world / "runs" / "unlearned-audit").final_metrics
    assert changed["lm_eval_first_acc"] == 0.25
    second = metrics["lm_eval_second_acc"]
    assert changed["utility_score"] == pytest.approx(min(1.0, harmonic_mean([0.25, second]) / before))
    # Other settings are measured again.
    assert cli(*AUDIT, "--utility", "{tasks: [first], limit: 4, include_path: tasks}").code == 0
    assert json.loads(part.read_text())["value"]["n-samples"]["first"]["effective"] == 4
    first = json.loads(part.read_text())["value"]["results"]["first"]["acc,none"]
    assert first == RunFolder(world / "runs" / "unlearned-audit").final_metrics["lm_eval_first_acc"] != 0.25


@pytest.mark.parametrize(("file", "old", "new"), [
    ("first.yaml", 'doc_to_text: "{{question}}"', 'doc_to_text: "Q: {{question}}"'),
    ("questions.jsonl", "Who wrote the book?", "Who read the book?"),
    ("both.yaml", "weight_by_size: true", "weight_by_size: false"),
])  # fmt: skip
def test_tasks_that_were_edited_are_others(tmp_path, file, old, new):
    folder = write_tasks(tmp_path / "tasks")

    def fingerprint():
        return LMEvalTasks(["both"], str(folder)).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    path = folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert fingerprint() != before


@pytest.mark.parametrize(("utility", "said"), [
    ("{tasks: [frist], include_path: tasks}", "utility.tasks: lm-eval 0.4"),
    ("{tasks: []}", "utility.tasks must be a list of names of tasks, such as [mmlu] (got [])"),
    ("{limit: 3}", "tasks"),
])  # fmt: skip
def test_wrong_tasks(world, cli, utility, said):
    ended = cli(*AUDIT, "--utility", utility)
    assert (ended.code, len(ended.errors)) == (2, 1), ended.err
    assert said in ended.errors[0]
    assert not (world / "runs" / "unlearned-audit").exists()


def test_scores_without_a_value_of_the_target():
    metrics = {"model_utility": 0.5, "lm_eval_t_acc": 0.4, "target_lm_eval_t_acc": 0.8}
    assert scores(metrics) == {}
    assert scores(metrics, ["lm_eval_t_acc"])["utility_score"] == 0.5
    known = metrics | {"target_model_utility": 0.6}
    ours, theirs = harmonic_mean([0.5, 0.4]), harmonic_mean([0.6, 0.8])
    assert scores(known, ["lm_eval_t_acc"])["utility_score"] == pytest.approx(ours / theirs)
    assert scores(known)["utility_score"] == pytest.approx(0.5 / 0.6)
