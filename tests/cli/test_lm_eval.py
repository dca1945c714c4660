"""Tasks of lm-eval in a run and on its exported model; the figures are those of lm-eval's own command."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from own_tasks import write_tasks
from safetensors.torch import load_file

from dipo_pl.storage.run_folder import RunFolder

TASKS = ("--lm_eval.tasks", "[first,pair]", "--lm_eval.include_path", "tasks")


def lines(run):
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def of_lm_eval(record):
    return {name: value for name, value in record.items() if name.startswith("lm_eval_")}


def test_tasks_are_measured_with_generated_answers_and_change_nothing_else(cli, smoke):
    write_tasks(Path("tasks"))
    options = ("--lm_eval.tasks", "[first,written]", "--lm_eval.include_path", "tasks")
    ended = cli("fit", "--config", "smoke.yaml", *options, "--forget_quality.generate_every", "2")
    assert ended.code == 0, ended.err
    records = lines("runs/smoke")
    assert (
        [bool(of_lm_eval(each)) for each in records]
        == ["model_utility" in each for each in records]
        == [True, False, True]
    )
    assert records[0].keys() >= {
        "lm_eval_first_acc",
        "lm_eval_first_acc_stderr",
        "lm_eval_written_exact_match",
    }
    weights, without = (load_file(Path(run) / "hf" / "model.safetensors") for run in ("runs/smoke", smoke))
    assert all(weights[name].equal(without[name]) for name in without)
    written = RunFolder("runs/smoke").read_manifest()["lm_eval"]
    assert written["tasks"] == ["first", "written"]
    assert "lm_eval" not in RunFolder(smoke).read_manifest()
    # Nothing of lm-eval is between the lines of the run.
    assert "pretrained" not in ended.err
    assert not {"Tokenizing", "Running"} & {*ended.err.split()}


def own_command(folder: str, tasks: str, out: Path) -> dict[str, object]:
    """What lm-eval's own command finds on a model folder."""
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    sys.argv = [
        "lm-eval", "run", "--model", "hf", "--model_args", f"pretrained={folder}", "--tasks", tasks, "--include_path",
        "tasks", "--device", "cpu", "--batch_size", "8", "--output_path", str(out),
    ]  # fmt: skip
    try:
        cli_evaluate()
    finally:
        sys.argv = before
    (found,) = out.rglob("results_*.json")
    return json.loads(found.read_text())["results"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_figures_are_those_of_lm_evals_own_command(cli, smoke, dtype):
    write_tasks(Path("tasks"))
    shutil.copytree(smoke, "run")
    if dtype == "bfloat16":
        from transformers import AutoModelForCausalLM

        AutoModelForCausalLM.from_pretrained("run/hf").bfloat16().save_pretrained("run/hf")
    before = lines("run")
    ended = cli("lm-eval", "run", "--tasks", "both", "--tasks", "written", "--include-path", "tasks")
    assert ended.code == 0, ended.err
    assert "lm_eval_both_acc" in ended.out
    records, run = lines("run"), RunFolder("run")
    assert [{**each} for each in before] == [
        {name: value for name, value in each.items() if not name.startswith("lm_eval_")} for each in records
    ]
    assert [bool(of_lm_eval(each)) for each in records] == [
        each["step"] == run.final_step for each in records
    ]
    theirs = own_command("run/hf", "both,written", Path("theirs"))
    ours = of_lm_eval(run.final_metrics)
    assert ours == {
        "lm_eval_both_acc": theirs["both"]["acc,none"],
        "lm_eval_both_acc_stderr": theirs["both"]["acc_stderr,none"],
        "lm_eval_written_exact_match": theirs["written"]["exact_match,none"],
        "lm_eval_written_exact_match_stderr": theirs["written"]["exact_match_stderr,none"],
    }
    recorded = json.loads(Path("run/lm_eval.json").read_text())
    # The tasks of the group are there, too.
    for name in ("first", "second"):
        assert recorded["results"][name]["acc,none"] == theirs[name]["acc,none"]
    shown = cli("report", "run", "--format", "markdown")
    assert shown.code == 0, shown.err
    assert "both acc" in shown.out


def test_a_measurement_of_training_stays_at_other_steps(cli):
    write_tasks(Path("tasks"))
    assert cli("fit", "--config", "smoke.yaml", *TASKS[:1], "[first]", *TASKS[2:]).code == 0
    before = lines("runs/smoke")
    assert cli("lm-eval", "runs/smoke", "--tasks", "first", "--include-path", "tasks").code == 0
    assert lines("runs/smoke") == before


@pytest.fixture
def run(smoke, tmp_path):
    write_tasks(tmp_path / "tasks")
    shutil.copytree(smoke, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_without_export(cli, run):
    shutil.rmtree(run / "hf")
    ended = cli("lm-eval", "run", "--tasks", "first", "--include-path", "tasks")
    assert (ended.code, len(ended.errors)) == (2, 1)
    assert (
        "run has no exported model (no config.json in run/hf): train it again with export.enabled true"
        in ended.errors[0]
    )


def test_a_signed_run(cli, run):
    (run / "signature.json").write_text("{}")
    ended = cli("lm-eval", "run", "--tasks", "first", "--include-path", "tasks")
    assert (ended.code, len(ended.errors)) == (2, 1)
    assert "run is signed, and this would change it: remove run/signature.json" in ended.errors[0]


@pytest.mark.parametrize(("words", "said"), [
    (("--tasks", "frist"), "--tasks: lm-eval 0.4"),
    (("--tasks", ","), "--tasks must be a list of names of tasks"),
    (("--tasks", "first", "--include-path", "no"), "--include-path must be a folder with tasks (got 'no')"),
    (("--tasks", "first", "--limit", "0"), "--limit must be at least 1 (got 0)"),
    ((), "dipo-pl lm-eval: the following arguments are required: --tasks"),
])  # fmt: skip
def test_wrong_input_leaves_the_run_as_it_is(cli, run, words, said):
    before = {each: each.stat().st_mtime_ns for each in run.rglob("*")}
    ended = cli("lm-eval", "run", *words)
    assert (ended.code, len(ended.errors)) == (2, 1)
    assert said in ended.errors[0]
    assert {each: each.stat().st_mtime_ns for each in run.rglob("*")} == before


def test_wrong_input_of_a_run_leaves_nothing(cli):
    ended = cli("fit", "--config", "smoke.yaml", "--lm_eval.tasks", "[nothing_like_this]")
    assert (ended.code, len(ended.errors)) == (2, 1)
    assert "lm_eval.tasks: lm-eval 0.4" in ended.errors[0]
    assert "has no task 'nothing_like_this'" in ended.errors[0]
    assert not Path("runs/smoke").exists()


def test_a_sharded_model_is_refused(cli):
    words = ("--lm_eval.tasks", "[first]", "--trainer.strategy", "fsdp2", "--trainer.devices", "1")
    ended = cli("fit", "--config", "smoke.yaml", *words)
    assert (ended.code, len(ended.errors)) == (2, 1)
    assert (
        "lm_eval.tasks needs the whole model on each device, and trainer.strategy shards it"
        in ended.errors[0]
    )


def test_tasks_of_two_configs_are_those_of_the_later(cli):
    Path("mine.yaml").write_text(yaml.safe_dump({"lm_eval": {"tasks": ["first"], "limit": 3}}))
    ended = cli(
        "fit", "--config", "smoke.yaml", "--config", "mmlu.yaml", "--config", "mine.yaml", "--print_config"
    )
    assert yaml.safe_load(ended.out)["lm_eval"] == {
        "tasks": ["first"], "include_path": None, "limit": 3, "num_fewshot": None, "batch_size": 8,
    }  # fmt: skip
