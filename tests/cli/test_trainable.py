"""A part of the weights is trained, from the command line: checkpoints, resume, references, export, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from at_step import killed_and_gone_on
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dipo_pl.models.from_config import FromConfig

PATTERN = "model.layers.(0|1).mlp.down_proj.weight"
NAMES = {f"model.layers.{each}.mlp.down_proj.weight" for each in (0, 1)}
QUICK = (
    "fit", "--config", "smoke.yaml", "--forget_quality.generate_every", "0", "--data.evaluation_rows", "2",
    "--samples.rows", "0",
)  # fmt: skip
RUN = (*QUICK, "--model.trainable", f"[{PATTERN}]")
FOLDER = Path("runs/smoke")


@pytest.fixture(scope="module")
def trained(fit_once) -> Path:
    return fit_once("trainable", *RUN[1:]) / "smoke"


def checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def manifest(run: Path) -> dict:
    return json.loads((run / "manifest.json").read_text())


def model(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "hf" / "model.safetensors")


def start(run: Path) -> dict[str, torch.Tensor]:
    """The weights that the run began with."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    fresh = FromConfig({"model_type": "llama", **shape}, tokenizer=str(run / "hf"))
    return fresh.model().state_dict()


def test_frozen_weights_stay_bitwise_and_all_are_exported(trained):
    before, after = start(trained), AutoModelForCausalLM.from_pretrained(trained / "hf").state_dict()
    assert before.keys() == after.keys() == model(trained).keys()
    changed = {name for name, each in after.items() if not torch.equal(each, before[name])}
    assert changed == NAMES
    assert all((after[name] != before[name]).float().mean() > 0.99 for name in NAMES)


def test_checkpoint_and_optimizer_hold_what_is_trained_alone(trained):
    saved = checkpoint(trained)
    assert saved["state_dict"].keys() == {f"model.{name}" for name in NAMES}
    (optimizer,) = saved["optimizer_states"]
    assert [each["exp_avg"].shape for each in optimizer["state"].values()] == [(64, 128)] * 2
    assert all(torch.equal(saved["state_dict"][f"model.{name}"], model(trained)[name]) for name in NAMES)
    policy = manifest(trained)["policy"]
    assert policy["trained_parameters"] == 2 * 64 * 128 < policy["parameters"]
    assert policy["changed_share"] > 0.99
    assert policy["frozen_weights"] == saved["frozen_weights"]


def test_what_is_trained_is_said_once(cli):
    ended = cli(*RUN, "--trainer.max_steps", "1")
    assert ended.code == 0, ended.err
    said = "model.trainable: 2 of 21 weights are trained, with 16,384 of "
    assert ended.err.count(said) == 1
    assert f"weights by pattern: {PATTERN} (2)" in ended.err


def test_killed_run_ends_as_if_nothing_had_happened(cli, process, trained):
    often = (*RUN, "--last_checkpoint.every_n_steps", "2")
    killed_and_gone_on(cli, process, often, hook="on_train_batch_end", step=5)
    assert manifest(FOLDER)["resumed_at_steps"] == [4]
    ours, theirs = checkpoint(FOLDER), checkpoint(trained)
    assert ours["global_step"] == theirs["global_step"] == 6
    assert all(torch.equal(each, theirs["state_dict"][name]) for name, each in ours["state_dict"].items())
    assert manifest(FOLDER)["policy"] == manifest(trained)["policy"]
    assert (FOLDER / "hf/model.safetensors").read_bytes() == (trained / "hf/model.safetensors").read_bytes()


def test_stored_states_of_the_reference_end_with_the_same_weights(cli, trained):
    """Their head is the policy's own, since it is frozen."""
    ended = cli(*RUN, "--model.reference", "StoredStates")
    assert ended.code == 0, ended.err
    ours, theirs = model(FOLDER), model(trained)
    # A store rounds nothing, but its states are computed in batches of another shape.
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=2e-5) for name in NAMES)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() - NAMES)


def test_fine_tuning_and_validation(cli, trained):
    words = (*RUN, "--model", "FineTuning", "--data.train_on", "all", "--model.trainable", f"[{PATTERN}]")
    ended = cli(*words, "--name", "tuned", "--trainer.max_steps", "2")
    assert ended.code == 0, ended.err
    assert checkpoint(Path("runs/tuned"))["state_dict"].keys() == {f"model.{name}" for name in NAMES}
    measured = cli(
        "validate", *RUN[1:], "--ckpt_path", trained / "checkpoints/last.ckpt", "--name", "measured"
    )
    assert measured.code == 0, measured.err
    assert "model.trainable: 2 of" not in measured.err


@pytest.mark.parametrize(("words", "line"), [
    (("--ckpt_path", "CHECKPOINT"),
     "the checkpoint is of another policy: it lacks 19 (model.lm_head.weight, ...) of the weights trained here, and none of "
     "its weights are not trained here: see model.policy, its adapter and model.trainable"),
    (("--ckpt_path", "CHECKPOINT", "--model.trainable", "[model.layers.0.mlp.down_proj.weight]"),
     "it lacks none of the weights trained here, and 1 (model.model.layers.1.mlp.down_proj.weight, ...) of its weights are "
     "not trained here"),
    (("--model.trainable", "[lm_head]"), "model.trainable: 'lm_head' matches no weight of LlamaForCausalLM, whose names are "
     "such as lm_head.weight, "),
    (("--model.trainable", "[]"), "model.trainable must be a list of regular expressions of weight names (got [])"),
    (("--model.trainable", "['a(']"), "model.trainable: 'a(' is not a regular expression"),
    (("--model.trainable", "[lm_head.weight]", "--config", "rmu.yaml"),
     "model.trainable: 'lm_head.weight' matches only weights behind layer 0, which the losses do not reach"),
    (("--config", "lora.yaml", "--model.trainable", "[lm_head.weight]"),
     "model.trainable is ['lm_head.weight'] and model.policy.adapter trains adapters alone: leave one of them out"),
])  # fmt: skip
def test_refused_in_one_line(cli, trained, words, line):
    words = [str(trained / "checkpoints/last.ckpt") if each == "CHECKPOINT" else each for each in words]
    ended = cli(*QUICK, *words, "--name", "refused")
    assert ended.code == 2
    assert len(ended.errors) == 1
    assert line in ended.errors[0]
    assert not Path("runs/refused/hf").exists()


def test_rmu_by_layers(cli):
    """Two decoder layers have no layer 7; with layers that exist, the down-projections alone are trained."""
    ended = cli(*QUICK, "--config", "rmu_layers.yaml")
    assert ended.code == 2
    assert (
        r"model.trainable: 'model\.layers\.(5|6|7)\.mlp\.down_proj\.weight' matches no weight"
        in ended.errors[0]
    )
    words = (
        "--model.forget_loss.layer",
        "1",
        "--model.retain_loss.layer",
        "1",
        "--model.trainable",
        f"[{PATTERN}]",
    )
    ended = cli(*QUICK, "--config", "rmu_layers.yaml", *words)
    assert ended.code == 0, ended.err
    run = Path("runs/smoke-rmu_layers")
    before, after = start(run), model(run)
    assert {name for name, each in after.items() if not torch.equal(each, before[name])} == NAMES


def test_a_plan_counts_what_is_trained(cli, trained):
    ended = cli("plan", "--json", *RUN[1:])
    assert ended.code == 0, ended.err
    planned, policy = json.loads(ended.out), manifest(trained)["policy"]
    assert planned["bytes"]["trained"] == policy["trained_parameters"]
    assert planned["bytes"]["trained"] + planned["bytes"]["frozen"] == policy["parameters"]
    # Weights and both moments of AdamW, and its two counts of steps.
    assert planned["bytes"]["checkpoint"] == 3 * 4 * policy["trained_parameters"] + 8
    refused = cli("plan", *QUICK[1:], "--model.trainable", "[lm_head]")
    assert refused.code == 2
    assert "model.trainable: 'lm_head' matches no weight" in refused.errors[0]
