"""What is planned beside what runs leave behind and what steps really take."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

from dipo_pl.commands.plan.live_memory import LiveMemory
from dipo_pl.commands.plan.machine import Machine
from dipo_pl.commands.plan.stand_ins import LossMemory
from dipo_pl.commands.plan.step import Shapes, memory_of
from dipo_pl.losses import CEU, DiPO, GradientAscent

SMOKE = ["--config", "smoke.yaml"]


def planned(cli, *words):
    ended = cli("plan", "--json", *words)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def storages(tensors):
    """Bytes, each storage once."""
    tensors = list(tensors)
    return sum({each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}.values())


def tensors_of(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors_of(each)


def check_files(run, plan):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    kept = [*checkpoint["state_dict"].values(), *tensors_of(checkpoint["optimizer_states"])]
    assert plan["bytes"]["checkpoint"] == storages(kept)
    size = (run / "checkpoints" / "last.ckpt").stat().st_size
    # Names and places of tensors, and what else Lightning keeps.
    assert plan["bytes"]["checkpoint"] < size < plan["bytes"]["checkpoint"] + 100_000
    with safe_open(run / "hf" / "model.safetensors", "pt") as file:
        names = list(file.keys())
        exported = storages(file.get_tensor(name) for name in names)
    assert plan["bytes"]["export"] == exported
    manifest = json.loads((run / "manifest.json").read_text())
    assert plan["run"]["steps"] == manifest["steps"]
    assert plan["run"]["epochs"] == manifest["epochs"]


def test_files_steps_and_epochs_are_those_of_a_run(smoke, cli):
    check_files(smoke, planned(cli, *SMOKE))


@pytest.mark.parametrize("further", [[], ["--config", "lora.yaml"]], ids=["all weights", "LoRA"])
def test_store_and_files_are_those_of_a_run_on_stored_states(further, cli, tmp_path):
    words = [*SMOKE, *further, "--config", "stored_states.yaml", "--trainer.accumulate_grad_batches", "2"]
    words += ["--trainer.max_epochs", "1", "--data.batch_size", "3", "--forget_quality.generate_every", "0"]
    plan = planned(cli, *words)
    assert cli("fit", *words, "--name", "run", "--output_dir", tmp_path).code == 0
    check_files(tmp_path / "run", plan)
    shards = [load_file(each) for each in (tmp_path / "run" / "reference").glob("*.safetensors")]
    assert shards
    assert plan["bytes"]["store"] == sum(each.nbytes for shard in shards for each in shard.values())


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_states_on_disk_have_the_precision_of_the_run(precision, cli):
    words = [*SMOKE, "--config", "stored_states.yaml"]
    full, half = planned(cli, *words), planned(cli, *words, "--trainer.precision", precision)
    assert half["state_bytes"]["last"] * 2 == full["state_bytes"]["last"]
    assert half["bytes"]["weights"] < full["bytes"]["weights"] if precision == "bf16-true" else (
        half["bytes"]["weights"] == full["bytes"]["weights"] and half["bytes"]["casts"] > 0
    )  # fmt: skip


def test_without_data_lengths_stand_for_it(cli, tmp_path):
    words = ["--config", "tofu.yaml", "--data.path", tmp_path / "none", "--model.policy", "FromConfig"]
    words += [
        "--model.policy.config",
        "{model_type: llama, hidden_size: 32, intermediate_size: 64, "
        "num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 300}",
    ]
    words += ["--trainer.precision", "32-true"]
    refused = cli("plan", *words)
    assert refused.code == 2
    assert len(refused.errors) == 1
    assert "give --tokens and --rows" in refused.errors[0]
    plan = planned(cli, *words, "--tokens", "20", "--answer_tokens", "8", "--rows", "100")
    # 13 batches of 8, four a step, ten epochs.
    assert plan["run"] == {
        "vocabulary": None, "rows": 100, "batches": 13, "epochs": 10, "steps": 40, "tokens": 4000,
        "answer_tokens": 1600, "store_positions": 1600,
    }  # fmt: skip
    layers = 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32)
    assert plan["bytes"]["trained"] == 2 * 300 * 32 + 32 + layers
    unknown = cli("plan", *words, "--tokens", "20")
    assert unknown.code == 0
    assert [line.split()[-1] for line in unknown.out.splitlines() if "steps" in line] == ["unknown"]


def test_sharded_devices_hold_a_share_and_ddp_holds_buckets(cli):
    words = [*SMOKE, "--tokens", "40", "--rows", "64", "--devices", "2", "--nodes", "2"]
    alone = planned(cli, *SMOKE, "--tokens", "40", "--rows", "64")["bytes"]
    ddp = planned(cli, *words)["bytes"]
    sharded = planned(cli, *words, "--trainer.strategy", "fsdp2")["bytes"]
    assert ddp["overhead"] == ddp["gradients"] == alone["gradients"]
    assert ddp["peak"] == alone["peak"] + ddp["overhead"]
    for name in ("weights", "reference", "gradients", "moments"):
        # Steps are counted by every device itself, and numbers are rounded.
        assert sharded[name] == pytest.approx(alone[name] / 4, abs=1000), name
        assert ddp[name] == alone[name]
    for name in ("activations", "checkpoint", "export"):
        assert sharded[name] == ddp[name] == alone[name], name
    said = cli("plan", *words, "--config", "sharded_checkpoints.yaml").out
    assert "in 4 shares, each from a device's process" in said


def test_a_device_that_is_too_small_is_told_and_what_would_help(cli):
    # Activations are most of it.
    words = [*SMOKE, "--tokens", "200", "--rows", "8", "--data.evaluation_tokens", "200"]
    words += ["--forget_quality.generate_every", "0"]
    peak = planned(cli, *words)["bytes"]["peak"] / 2**30
    fits = cli("plan", *words, "--memory", peak / 0.89)
    assert fits.out.splitlines()[-1].startswith("fits: ")
    record = planned(cli, *words, "--memory", peak / 0.91)
    assert not record["fits"]
    assert all(each["peak"] <= 0.9 * peak / 0.91 * 2**30 for each in record["would_fit"])
    assert ["--model.policy.gradient_checkpointing=true"] in [each["with"] for each in record["would_fit"]]
    hopeless = cli("plan", *words, "--memory", "0.0001")
    assert "take more devices" in hopeless.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--devices", "0"], "--devices must be at least 1 and at most 10,000, got 0"),
        (
            ["--config", "fsdp2.yaml", "--trainer.accelerator", "auto"],
            "trainer.devices is auto with trainer.strategy fsdp2, and there is no GPU here to count: say with --devices",
        ),
        (["--memory", "0"], "--memory must be a device's memory in GiB, got 0"),
        (["--rows", "5"], "--rows goes with --tokens"),
        (["--tokens", "1"], "--tokens counts a prompt"),
        (["--tokens", "9", "--answer_tokens", "9"], "--answer_tokens 9"),
        (["--tokens", "9", "--rows", "0"], "--rows must be at least 1, got 0"),
        (["--trainer.strategy", "zebra"], "trainer.strategy zebra"),
        (["--trainer.precision", "transformer-engine"], "trainer.precision transformer-engine"),
        (["--data.train_on", "retain"], "data.train_on is retain"),
        (["--model.policy.colour", "red"], "colour"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_one_line(words, named, cli, tmp_path):
    ended = cli("plan", *SMOKE, *words)
    assert ended.code == 2
    assert len(ended.errors) == 1
    assert named in ended.errors[0]
    assert not ended.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "case", ["tiny vocabulary, StoredStates", "LoRA, checkpointing, 2 + 2 rows", "GradDiff, accumulation"]
)
def test_the_peak_of_a_step_is_within_15_percent_of_the_measured_one(case):
    script = Path(__file__).parent / "measured.py"
    done = subprocess.run([sys.executable, script, case], capture_output=True, text=True, check=True)
    peaks = json.loads(done.stdout.splitlines()[-1])
    assert peaks["planned"] == pytest.approx(peaks["measured"], rel=0.15)


def test_no_weights_are_made():
    from measured import Case

    # A thousand billion parameters, which no machine here holds.
    case = Case(vocabulary=2_000_000_000)
    shapes = Shapes(
        {"forget": case.training()["forget"][:1], "retain": case.training()["retain"][:1]},
        (1, 8),
        (1, 8),
        False,
    )
    memory = memory_of(
        case.module(), shapes, Machine(1, "single device", (), True, None, None), 2_000_000_000
    )
    assert memory.trained > 10**12
    assert memory.moments == pytest.approx(8 * memory.trained, rel=1e-6)


def test_live_memory_follows_storages_to_their_end():
    with LiveMemory() as memory:
        first = torch.zeros(1000)
        view = first[10:]
        del first
        assert memory.live == 4000
        second = view + 1
        del view
        assert (memory.live, memory.peak) == (3960, 7960)
        assert memory.restart() == memory.peak == 3960
        del second
        assert memory.live == 0


def test_a_loss_is_weighed_in_logits_of_one_model():
    # In place; NumPy's copy for the selection; the gradient, and log-probabilities beside it.
    assert LossMemory.of(GradientAscent()).extra < 0.1
    assert LossMemory.of(DiPO()).extra == pytest.approx(1.0, abs=0.3)
    assert LossMemory.of(CEU()).gradient == 1
