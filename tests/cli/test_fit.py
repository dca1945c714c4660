"""`dipo-pl fit` leaves a complete run folder; run again it says that it is done; `validate` measures."""

import json
import re
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from dipo_pl.version import __version__


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_run_folder_is_complete(smoke):
    assert {path.name for path in smoke.iterdir()} >= {
        "config.yaml", "manifest.json", "metrics.jsonl", "evaluation", "checkpoints", "hf",
    }  # fmt: skip
    assert [each["step"] for each in metrics_of(smoke)] == [0, 3, 6]
    assert [each["epoch"] for each in metrics_of(smoke)] == [0, 1, 2]
    assert sorted(path.name for path in (smoke / "evaluation").iterdir()) == [
        "step-000000.json", "step-000003.json", "step-000006.json",
    ]  # fmt: skip
    assert {path.name for path in (smoke / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_manifest_tells_what_made_the_result(smoke):
    manifest = json.loads((smoke / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert (manifest["command"], manifest["epochs"], manifest["steps"]) == ("fit", 2, 6)
    assert manifest["dipo_pl"] == __version__
    assert manifest["versions"]["torch"] == metadata.version("torch")
    assert (manifest["world_size"], manifest["global_batch"], manifest["gradient_clip"]) == (1, 8, 1.0)
    assert (manifest["precision"], manifest["attention"], manifest["seed"]) == ("32-true", "sdpa", 0)
    assert manifest["data"]["forget"]["rows"] == 20
    assert manifest["data"]["retain"]["rows"] == 60
    assert re.fullmatch("[0-9a-f]{64}", manifest["policy"]["weights_at_start"])


def test_tensorboard_shows_losses_parts_speed_metrics_and_samples(smoke):
    events = EventAccumulator(str(smoke)).Reload()
    scalars = set(events.Tags()["scalars"])
    assert scalars >= {
        "train/loss", "train/forget_loss", "train/retain_loss", "train/epoch",
        "train/forget_margin", "train/forget_margin_positive", "train/forget_kept",
        "train/retain_margin", "train/retain_margin_positive", "train/retain_kept",
        "train/gradient_norm", "train/learning_rate", "train/tokens_per_second", "train/memory_mib",
        "utility/model_utility", "forget/probability", "forget/truth_ratio",
        "retain/rouge_l_recall", "privacy/membership_min_k_auc",
    }  # fmt: skip
    assert {each.split("/")[0] for each in scalars} == {"train", "forget", "retain", "privacy", "utility"}
    assert {f"samples/{name}/text_summary" for name in ("forget", "retain")} <= set(events.Tags()["tensors"])
    assert [each.step for each in events.Scalars("utility/model_utility")] == [0, 3, 6]
    # The vocabulary has 512 tokens, of which TopFraction(0.05) keeps 26.
    assert [each.value for each in events.Scalars("train/forget_kept")] == pytest.approx([26] * 6)
    # Policy and reference start equal, so every margin does at 0 and the loss at 2 ln 2.
    assert events.Scalars("train/loss")[0].value == pytest.approx(2 * 0.6931472, abs=1e-5)


def test_exported_model_loads_and_is_the_last_checkpoint(smoke):
    model = AutoModelForCausalLM.from_pretrained(smoke / "hf")
    checkpoint = torch.load(smoke / "checkpoints" / "last.ckpt", weights_only=True)
    weights = {name.removeprefix("model."): each for name, each in checkpoint["state_dict"].items()}
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(each, weights[name]) for name, each in model.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(smoke / "hf")
    assert (
        tokenizer.decode(tokenizer("Who wrote it?")["input_ids"], skip_special_tokens=True) == "Who wrote it?"
    )


def test_the_same_command_again_says_that_it_is_finished(cli, smoke):
    before = {path: path.read_bytes() for path in smoke.rglob("*") if path.is_file()}
    ended = cli("fit", "--config", "smoke.yaml", "--output_dir", smoke.parent)
    assert ended.code == 0
    assert "is finished (2 epochs, 6 steps)" in ended.out
    assert {path: path.read_bytes() for path in smoke.rglob("*") if path.is_file()} == before


def test_a_folder_below_home_is_the_same_one_again(cli, monkeypatch):
    monkeypatch.setenv("HOME", str(Path("home").resolve()))
    words = ("fit", "--config", "smoke.yaml", "--output_dir=~/runs", "--trainer.limit_train_batches", "1")
    words += ("--trainer.max_epochs", "1", "--forget_quality.generate_every", "0")
    assert cli(*words).code == 0
    assert Path("home/runs/smoke/manifest.json").is_file()
    assert not Path("~").exists()
    assert "is finished" in cli(*words).out


def test_a_run_that_ends_by_steps_at_the_end_of_an_epoch_has_a_checkpoint(cli):
    words = (
        "fit", "--config", "smoke.yaml", "--forget_quality.generate_every", "0", "--trainer.max_epochs", "10",
    )  # fmt: skip
    words += ("--last_checkpoint.every_n_epochs", "5", "--trainer.max_steps")
    for steps in ("3", "6"):
        assert cli(*words, steps).code == 0
        last = torch.load("runs/smoke/checkpoints/last.ckpt", weights_only=True)
        assert last["global_step"] == int(steps)
    assert json.loads(Path("runs/smoke/manifest.json").read_text())["resumed_at_steps"] == [3]


def test_a_checkpoint_of_other_shapes_is_refused_under_fsdp2(cli, smoke):
    wide = ("--model.policy.config.intermediate_size", "32", "--trainer.strategy", "fsdp2")
    ended = cli("validate", "--config", "smoke.yaml", *wide, "--ckpt_path", smoke / "checkpoints/last.ckpt")
    assert ended.code != 0
    (line,) = ended.errors
    assert "the checkpoint has a tensor of shape" in line


def test_a_run_from_a_checkpoint_elsewhere_goes_on_from_its_own(cli, smoke):
    words = ("fit", "--config", "smoke.yaml", "--forget_quality.generate_every", "0", "--name", "more")
    words += ("--ckpt_path", smoke / "checkpoints/last.ckpt", "--trainer.max_epochs")
    for epochs in ("3", "4"):
        assert cli(*words, epochs).code == 0
    manifest = json.loads(Path("runs/more/manifest.json").read_text())
    assert (manifest["resumed_at_steps"], manifest["steps"]) == ([6, 9], 12)


def test_saved_config_makes_the_same_run(cli, smoke):
    ended = cli("fit", "--config", smoke / "config.yaml", "--output_dir", ".", "--name", "again")
    assert ended.code == 0, ended.err
    assert metrics_of(Path("again")) == metrics_of(smoke)


def test_validate_measures_an_exported_model_without_training(cli, smoke):
    ended = cli(
        "validate", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", smoke / "hf",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    run = Path("runs/smoke-validate")
    assert not (run / "checkpoints").exists()
    assert not (run / "hf").exists()
    ignored = ("epoch", "step", "utility_sets", "verdict", "verdict_reasons")
    measured, trained = metrics_of(run)[-1], metrics_of(smoke)[-1]
    assert {key: value for key, value in measured.items() if key not in ignored} == pytest.approx(
        {key: value for key, value in trained.items() if key not in ignored}
    )


def test_fine_tuning_exports_what_unlearning_takes(cli):
    small = "{model_type: gpt2, n_embd: 32, n_layer: 1, n_head: 2, n_positions: 128}"
    policy = (
        "--model.policy", "FromConfig", "--model.policy.config", small, "--model.policy.vocab_size", "300",
    )  # fmt: skip
    target = cli("fit", "--config", write_tuning(Path("tune.yaml")), *policy, "--name", "target")
    assert target.code == 0, target.err
    retain_only = cli(
        "fit", "--config", "tune.yaml", "--config", "retain_only.yaml", *policy, "--name", "retain-only"
    )
    assert retain_only.code == 0, retain_only.err
    steps = {name: metrics_of(Path("runs") / name)[-1]["step"] for name in ("target", "retain-only")}
    assert steps == {"target": 10, "retain-only": 8}  # 80 and 60 rows, 8 a step
    ended = cli(
        "fit", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", "runs/target/hf",
        "--forget_quality.retain_result", "runs/retain-only", "--name", "unlearned",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    last = metrics_of(Path("runs/unlearned"))[-1]
    assert 0 < last["forget_quality"] <= 1
    assert 10 ** last["forget_quality_log10_p"] == pytest.approx(last["forget_quality"])


def write_tuning(path: Path) -> Path:
    path.write_text(
        """
model: {class_path: FineTuning, init_args: {policy: {class_path: FromConfig, init_args: {config: {model_type: gpt2}}}}}
data: {class_path: FictitiousAuthors, init_args: {train_on: all, authors: 4, forget_authors: 1, evaluation_rows: 10}}
forget_quality: {utility_sets: [retain], generate_every: 0}
samples: {rows: 0}
trainer: {accelerator: cpu, max_epochs: 1, num_sanity_val_steps: 0}
"""
    )
    return path


def test_a_measurement_is_made_at_the_end_though_no_epoch_asks_for_it(cli):
    ended = cli(
        "fit", "--config", "smoke.yaml", "--trainer.check_val_every_n_epoch", "5", "--export.enabled", "false"
    )
    assert ended.code == 0, ended.err
    assert [(each["epoch"], each["step"]) for each in metrics_of(Path("runs/smoke"))] == [(0, 0), (2, 6)]
    assert not Path("runs/smoke/hf").exists()


def test_the_best_checkpoint_can_be_exported(cli):
    ended = cli(
        "fit", "--config", "smoke.yaml", "--checkpoint.monitor", "forget_probability", "--checkpoint.mode", "max",
        "--checkpoint.save_top_k", "1", "--export.best", "true", "--model.optimizer.lr", "0.05",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    run = Path("runs/smoke")
    best = max(metrics_of(run)[1:], key=lambda each: each["forget_probability"])
    (checkpoint,) = (run / "checkpoints").glob("epoch=*.ckpt")
    assert f"step={best['step']}" in checkpoint.name
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["callbacks"]
    (path,) = (each["best_model_path"] for name, each in state.items() if name.startswith("BestCheckpoint"))
    assert path.endswith(checkpoint.name)
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]["model.lm_head.weight"]
    exported = AutoModelForCausalLM.from_pretrained(run / "hf").lm_head.weight
    assert torch.equal(saved, exported)


def test_the_best_checkpoint_holds_weights_alone(cli, tmp_path):
    quick = "--config smoke.yaml --checkpoint.monitor forget_probability --export.enabled false".split()
    assert cli("fit", *quick, "--trainer.max_epochs", "1").code == 0
    (best,), last = (
        Path("runs/smoke/checkpoints").glob("epoch=*.ckpt"),
        Path("runs/smoke/checkpoints/last.ckpt"),
    )
    weights = sum(each.nbytes for each in torch.load(last, weights_only=True)["state_dict"].values())
    assert best.stat().st_size < 1.3 * weights
    assert last.stat().st_size > 2.9 * weights
    # It can be measured, and no training can go on from it.
    assert cli("validate", "--config", "smoke.yaml", "--ckpt_path", str(best)).code == 0
    ended = cli("fit", *quick, "--trainer.max_epochs", "2", "--name", "on", "--ckpt_path", str(best))
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert f"{best} holds weights alone" in ended.err
    assert "--checkpoint.save_weights_only false" in ended.err
    assert not Path("runs/on/checkpoints").exists()
    ended = cli(
        "fit",
        *quick,
        "--trainer.max_epochs",
        "1",
        "--name",
        "whole",
        "--checkpoint.save_weights_only",
        "false",
    )
    assert ended.code == 0, ended.err
    (best,) = Path("runs/whole/checkpoints").glob("epoch=*.ckpt")
    ended = cli("fit", *quick, "--trainer.max_epochs", "2", "--name", "on", "--ckpt_path", str(best))
    assert ended.code == 0, ended.err


def test_works_as_a_process_from_another_working_directory(process, tmp_path):
    quick = "--trainer.max_steps 1 --forget_quality.generate_every 0 --data.evaluation_rows 1".split()
    ended = process("fit", "--config", "smoke.yaml", "--config", "npo.yaml", *quick, fresh=True)
    assert ended.code == 0, ended.err
    assert metrics_of(tmp_path / "runs" / "smoke-npo")[-1]["step"] == 1
    assert "Traceback" not in ended.err


def test_a_config_in_the_working_directory_comes_before_a_shipped_one(cli):
    Path("smoke.yaml").write_text("name: mine\n")
    ended = cli("fit", "--config", "smoke.yaml")
    assert ended.code == 2
    assert "required" in ended.errors[0] or "model" in ended.errors[0]


def test_version_answers_at_once_and_help_imports_nothing_heavy(process):
    started = time.perf_counter()
    assert process("--version", fresh=True).out == f"{__version__}\n"
    assert time.perf_counter() - started < 1
    ended = process("--help", fresh=True, PYTHONPROFILEIMPORTTIME="1")
    assert "dipo-pl demo" in ended.out
    imported = {line.rpartition("|")[2].strip() for line in ended.err.splitlines()}
    assert not imported & {"torch", "lightning", "transformers", "jsonargparse", "datasets", "yaml"}


def test_configs_lists_what_is_shipped(cli):
    listed = cli("configs").out
    assert re.search(r"^tofu\.yaml +DiPO on TOFU", listed, flags=re.MULTILINE)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_precision(cli, precision):
    ended = cli(
        "fit", "--config", "smoke.yaml", "--trainer.precision", precision, "--trainer.max_epochs", "1"
    )
    assert ended.code == 0, ended.err
    manifest = json.loads(Path("runs/smoke/manifest.json").read_text())
    assert manifest["precision"] == precision


def test_accumulation_clipping_and_gradient_checkpointing(cli):
    ended = cli(
        "fit", "--config", "smoke.yaml", "--trainer.accumulate_grad_batches", "2", "--data.batch_size", "4",
        "--model.policy.gradient_checkpointing", "true", "--data.workers", "1", "--trainer.max_epochs", "1",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    manifest = json.loads(Path("runs/smoke/manifest.json").read_text())
    assert (manifest["global_batch"], manifest["steps"]) == (8, 3)


def test_measurements_of_two_models_do_not_share_a_folder(cli, smoke):
    quick = ("validate", "--config", "smoke.yaml", "--forget_quality.generate_every", "0")
    assert cli(*quick).code == 0
    ended = cli(*quick, "--model.policy", "Pretrained", "--model.policy.path", smoke / "hf")
    assert ended.code == 2
    assert "runs/smoke-validate holds a run with another configuration" in ended.errors[0]


def test_finished_is_finished_also_by_steps(cli):
    quick = ("fit", "--config", "smoke.yaml", "--trainer.max_epochs", "null", "--trainer.max_steps", "2")
    assert cli(*quick).code == 0
    assert [(each["epoch"], each["step"]) for each in metrics_of(Path("runs/smoke"))] == [(0, 0), (0.667, 2)]
    assert "is finished" in cli(*quick).out


def test_seed_everything_seeds_weights_and_pairing(cli):
    quick = (
        "fit", "--config", "smoke.yaml", "--trainer.max_steps", "1", "--forget_quality.generate_every", "0",
    )  # fmt: skip
    weights = {}
    for name, seed in {"a": "0", "b": "1", "c": "1"}.items():
        assert cli(*quick, "--seed_everything", seed, "--name", name).code == 0
        manifest = json.loads(Path("runs", name, "manifest.json").read_text())
        assert manifest["seed"] == int(seed)
        weights[name] = manifest["policy"]["weights_at_start"]
    assert weights["a"] != weights["b"] == weights["c"]


def test_a_fast_dev_run_leaves_the_run_alone(cli):
    assert cli("fit", "--config", "smoke.yaml", "--trainer.fast_dev_run", "true").code == 0
    assert not Path("runs/smoke").exists()
