"""Adapters through the command line: one model, small checkpoints, both exports; and training that changes nothing."""

import json
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml
from at_step import killed_and_gone_on
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers import AutoModelForCausalLM

from dipo_pl.models.from_config import FromConfig
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.storage.fingerprints import weights_fingerprint

QUICK = ("--forget_quality.generate_every", "0", "--data.evaluation_rows", "2")
LORA = ("--config", "lora.yaml", "--model.optimizer.lr", "0.01", "--model.policy.adapter.rank", "4")
# GPT-2 has dropout, and layers that hold their weights transposed.
RUN = (
    "fit", "--config", "smoke.yaml", *LORA, *QUICK, "--model.policy.adapter.dropout", "0.1", "--model.dropout", "true",
    "--model.policy.adapter.targets", "[c_attn, c_fc]", "--seed_everything", "5",
    "--model.policy.config", "{model_type: gpt2, n_embd: 32, n_layer: 2, n_head: 2, n_positions: 128}",
    "--model.policy.vocab_size", "300", "--model.forget_loss", "NPO", "--model.forget_loss.beta", "0.1",
)  # fmt: skip
TARGETS = [f"transformer.h.{layer}.{name}" for layer in (0, 1) for name in ("attn.c_attn", "mlp.c_fc")]


@pytest.fixture(scope="module")
def trained(fit_once) -> Path:
    return fit_once("lora", *RUN[1:]) / "smoke-lora"


@pytest.fixture(scope="module")
def base(trained: Path) -> dict[str, torch.Tensor]:
    """The weights that the run began with, apart from the adapters."""
    policy = yaml.safe_load((trained / "config.yaml").read_text())["model"]["init_args"]["policy"][
        "init_args"
    ]
    fresh = FromConfig(**policy | {"adapter": None, "tokenizer": str(trained / "hf")})
    return fresh.model().state_dict()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, smoke: Path) -> Path:
    """A pretrained model; not to be written to."""
    return shutil.copytree(smoke / "hf", tmp_path_factory.mktemp("pretrained") / "base")


def checkpoint_of(run: Path, name: str = "last.ckpt") -> dict:
    return torch.load(run / "checkpoints" / name, weights_only=True)


def manifest_of(run: Path) -> dict:
    return json.loads((run / "manifest.json").read_text())


def is_base_and_adapters(model: dict, base: dict, adapters: dict) -> None:
    """W + (alpha / rank) B A in each adapted layer, which GPT-2 holds transposed, and W in all others."""
    for name, weight in model.items():
        expected = base[name].double()
        if name.removesuffix(".weight") in TARGETS:
            a, b = (
                adapters[f"model.{name.removesuffix('weight')}lora_{each}.default.weight"] for each in "AB"
            )
            expected = expected + 32 / 4 * (b.double() @ a.double()).T
            assert (weight - base[name]).abs().max() > 1e-3
            torch.testing.assert_close(weight, expected.float(), rtol=0, atol=1e-7)
        else:
            assert torch.equal(weight, base[name]), name


def test_losses_and_weights_are_those_of_a_frozen_copy(cli, trained):
    ended = cli(*RUN, "--model.reference", "FrozenCopy")
    assert ended.code == 0, ended.err
    ours, theirs = (
        [each.value for each in EventAccumulator(str(run)).Reload().Scalars("train/forget_loss")]
        for run in (trained, Path("runs/smoke-lora"))
    )
    assert len(ours) == 6
    assert ours == theirs
    assert max(ours) - min(ours) > 0.5
    weights = [checkpoint_of(run)["state_dict"] for run in (trained, Path("runs/smoke-lora"))]
    assert all(torch.equal(each, weights[1][name]) for name, each in weights[0].items())


def test_a_checkpoint_holds_adapters_alone(trained):
    checkpoint = checkpoint_of(trained)
    expected = {f"model.{name}.lora_{each}.default.weight" for name in TARGETS for each in "AB"}
    assert set(checkpoint["state_dict"]) == expected
    assert all(each.any() for each in checkpoint["state_dict"].values())
    (optimizer,) = checkpoint["optimizer_states"]
    assert len(optimizer["state"]) == len(expected)
    policy = manifest_of(trained)["policy"]
    assert policy["trained_parameters"] == sum(each.numel() for each in checkpoint["state_dict"].values())
    # Weights and both of AdamW's moments, in 4 bytes each, and little else.
    size = (trained / "checkpoints" / "last.ckpt").stat().st_size
    assert 12 * policy["trained_parameters"] < size < 12 * policy["trained_parameters"] + 40_000
    assert size < 4 * policy["parameters"]


def test_export_is_the_untouched_base_and_the_adapters_in_a_plain_model(trained, base):
    assert not (trained / "hf" / "adapter_config.json").exists()
    model, info = AutoModelForCausalLM.from_pretrained(trained / "hf", output_loading_info=True)
    assert not any(info.values())
    is_base_and_adapters(model.state_dict(), base, checkpoint_of(trained)["state_dict"])
    assert manifest_of(trained)["exported_weights"] == weights_fingerprint(model)


def test_manifest_tells_frozen_from_trained(trained):
    policy = manifest_of(trained)["policy"]
    fingerprints = [policy[key] for key in ("frozen_weights", "weights_at_start", "weights_at_end")]
    assert len({*fingerprints}) == 3
    assert all(len(each) == 64 for each in fingerprints)
    checkpoint = checkpoint_of(trained)
    assert checkpoint["frozen_weights"] == policy["frozen_weights"]
    adapters = nn.ParameterList(nn.Parameter(each) for each in checkpoint["state_dict"].values())
    assert policy["weights_at_end"] == weights_fingerprint(adapters)
    assert manifest_of(trained)["versions"]["peft"] == metadata.version("peft")


def test_the_runs_seed_is_the_adapters_too(trained):
    policy = yaml.safe_load((trained / "config.yaml").read_text())["model"]["init_args"]["policy"][
        "init_args"
    ]
    assert policy["adapter"]["init_args"]["seed"] == policy["seed"] == 5


def test_killed_run_ends_as_if_nothing_had_happened(cli, process, trained):
    often = (*RUN, "--last_checkpoint.every_n_steps", "2")
    killed_and_gone_on(cli, process, often, hook="on_train_batch_end", step=5)
    run = Path("runs/smoke-lora")
    ours, theirs = checkpoint_of(run), checkpoint_of(trained)
    assert ours["global_step"] == theirs["global_step"] == 6
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    assert all(torch.equal(each, theirs["state_dict"][name]) for name, each in ours["state_dict"].items())
    assert (run / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()
    assert manifest_of(run)["policy"] == manifest_of(trained)["policy"]
    assert manifest_of(run)["resumed_at_steps"] == [4]
    assert same_file("hf/model.safetensors", run, trained)


def same_file(name: str, one: Path, other: Path) -> bool:
    return (one / name).read_bytes() == (other / name).read_bytes()


def test_a_run_that_ended_before_its_export_is_compared_with_its_true_start(cli, trained):
    """Nothing is left to be trained: from the resumed weights on, nothing changes."""
    run = shutil.copytree(trained, Path("runs/smoke-lora"))
    shutil.rmtree(run / "hf")
    (run / "manifest.json").write_text(json.dumps(manifest_of(trained) | {"status": "running"}))
    ended = cli(*RUN)
    assert ended.code == 0, ended.err
    assert manifest_of(run)["status"] == "finished"
    assert manifest_of(run)["policy"] == manifest_of(trained)["policy"]
    assert same_file("hf/model.safetensors", run, trained)


def test_another_runs_checkpoint_may_be_all_there_is_to_export(cli, trained):
    ended = cli(*RUN, "--ckpt_path", trained / "checkpoints/last.ckpt", "--name", "again")
    assert ended.code == 0, ended.err
    assert same_file("hf/model.safetensors", Path("runs/again"), trained)


def test_the_best_checkpoint_is_exported_with_the_base(cli, base):
    ended = cli(
        *RUN, "--checkpoint.monitor", "forget_probability", "--checkpoint.mode", "max", "--export.best", "true",
        "--model.schedule", "constant_with_warmup", "--model.optimizer.lr", "0.05",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    run = Path("runs/smoke-lora")
    (best,) = (each.name for each in (run / "checkpoints").iterdir() if each.name[0] == "e")
    assert best == "epoch=0-step=3.ckpt"
    model = AutoModelForCausalLM.from_pretrained(run / "hf").state_dict()
    is_base_and_adapters(model, base, checkpoint_of(run, best)["state_dict"])


def test_a_half_precision_base_and_its_adapter_as_a_file(cli, folder):
    pretrained = (
        "--model.policy", "Pretrained", "--model.policy.path", folder, "--model.policy.dtype", "bfloat16",
    )  # fmt: skip
    ended = cli(
        "fit", "--config", "smoke.yaml", *pretrained, *LORA, *QUICK, "--export.adapter", "true",
        "--model.policy.gradient_checkpointing", "true",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    run = Path("runs/smoke-lora")
    adapters = checkpoint_of(run)["state_dict"]
    assert {each.dtype for each in adapters.values()} == {torch.float32}
    assert not (run / "hf/config.json").exists()
    written = load_file(run / "hf/adapter_model.safetensors")
    assert len(written) == len(adapters) == 28
    for name, each in written.items():
        ours = name.replace("base_model.model.", "model.").replace(".weight", ".default.weight")
        assert torch.equal(each, adapters[ours])
    assert json.loads((run / "hf/adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)

    bare = Pretrained(str(folder), dtype="bfloat16").model()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        before = bare.eval()(ids).logits
        loaded = PeftModel.from_pretrained(bare, run / "hf").eval()(ids).logits
    assert (loaded - before).abs().max() > 0.01


def test_frozen_weights_are_told_apart_by_what_they_were_before_a_precision_casts_them(cli, folder):
    quick = (
        *("fit", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", folder),
        *(*LORA, *QUICK, "--model.policy.dtype", "float32", "--trainer.precision", "bf16-true"),
    )
    for epochs in ("1", "2"):
        ended = cli(*quick, "--trainer.max_epochs", epochs)
        assert ended.code == 0, ended.err
    policy = manifest_of(Path("runs/smoke-lora"))["policy"]
    assert policy["dtype"] == "torch.bfloat16"
    assert manifest_of(Path("runs/smoke-lora"))["resumed_at_steps"] == [3]


def test_a_base_that_has_changed_is_refused(cli, folder):
    model = shutil.copytree(folder, Path("model"))
    quick = (
        *("fit", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", "./model"),
        *LORA, *QUICK,
    )  # fmt: skip
    assert cli(*quick, "--trainer.max_epochs", "1").code == 0
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    changed = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        changed.lm_head.weight[3, 3] += 1e-3
    changed.save_pretrained(model)
    ended = cli(*quick, "--trainer.max_epochs", "2")
    assert ended.code == 2
    assert "the frozen weights of ./model are not those that the checkpoint was trained" in ended.errors[0]
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_another_policy_is_refused(cli, smoke, trained):
    whole = cli(
        "fit", "--config", "smoke.yaml", *LORA, *QUICK, "--ckpt_path", smoke / "checkpoints/last.ckpt"
    )
    assert whole.code == 2
    assert "the checkpoint is of another policy" in whole.errors[0]
    adapters = cli("fit", "--config", "smoke.yaml", *QUICK, "--ckpt_path", trained / "checkpoints/last.ckpt")
    assert adapters.code == 2
    assert "the checkpoint is of another policy" in adapters.errors[0]
    assert not Path("runs").exists()


def assert_nothing_is_lost(ended, run, steps, rate):
    assert ended.code == 1, ended.err
    message = f"no weight of the policy has changed after {steps} steps: check the learning rate ({rate})"
    assert f"dipo-pl: failed: TrainingError: {message}, model.warmup (0.1)" in ended.err
    assert checkpoint_of(run)["global_step"] == steps
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(each)["step"] for each in lines] == [0, steps]
    manifest = manifest_of(run)
    assert manifest["status"].startswith(f"failed: {message}")
    assert manifest["policy"]["weights_at_end"] == manifest["policy"]["weights_at_start"]
    assert not (run / "hf").exists()


STILL = ("fit", "--config", "smoke.yaml", *QUICK, "--trainer.max_epochs", "1", "--name", "still")


def test_training_that_changes_nothing_fails_and_loses_nothing(cli):
    for _ in range(2):  # the second is resumed, and has nothing left to do
        ended = cli(*STILL, "--model.optimizer.lr", "1e-30")
        assert_nothing_is_lost(ended, Path("runs/still"), 3, "1e-30")
        assert len(ended.errors) == 1


def test_all_processes_end_where_adapters_have_not_changed(process, tmp_path):
    ended = process(
        *STILL, "--config", "lora.yaml", "--model.optimizer.lr", "0",
        "--trainer.strategy", "ddp", "--trainer.devices", "2",
    )  # fmt: skip
    assert_nothing_is_lost(ended, tmp_path / "runs/still", 2, "0")


@pytest.mark.parametrize("short", [
    ("--trainer.fast_dev_run", "true", "--model.warmup", "0.9"),  # one step, at a rate of 0
    ("--trainer.max_steps", "0"),
])  # fmt: skip
def test_runs_that_can_change_nothing_do_not_fail(cli, short):
    ended = cli("fit", "--config", "smoke.yaml", *QUICK, *short)
    assert ended.code == 0, ended.err
