"""`dipo-pl plan` against the files of runs and the measured memory of steps."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dipo_pl.commands.plan.estimate import Plan, remedies
from dipo_pl.commands.plan.live_memory import LiveMemory, storage_bytes
from dipo_pl.commands.plan.machine import Machine
from dipo_pl.commands.plan.stand_ins import LossMemory
from dipo_pl.commands.plan.step import Shapes, memory_of
from dipo_pl.commands.plan.table import verdict
from dipo_pl.losses import CEU, DiPO, GradientAscent

SMOKE = ["--config", "smoke.yaml"]


def planned(cli, *words):
    ended = cli("plan", "--json", *words)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def tensors_of(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors_of(each)


def check_files(run, plan):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    kept = [*checkpoint["state_dict"].values(), *tensors_of(checkpoint["optimizer_states"])]
    assert plan["bytes"]["checkpoint"] == storage_bytes(kept)
    size = (run / "checkpoints" / "last.ckpt").stat().st_size
    # The file also holds names of tensors and Lightning's own entries.
    assert plan["bytes"]["checkpoint"] < size < plan["bytes"]["checkpoint"] + 100_000
    with safe_open(run / "hf" / "model.safetensors", "pt") as file:
        names = list(file.keys())
        exported = storage_bytes(file.get_tensor(name) for name in names)
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
        # Every device counts steps itself, and numbers are rounded.
        assert sharded[name] == pytest.approx(alone[name] / 4, abs=1000), name
        assert ddp[name] == alone[name]
    for name in ("activations", "checkpoint", "export"):
        assert sharded[name] == ddp[name] == alone[name], name
    shown = cli("plan", *words, "--config", "sharded_checkpoints.yaml").out
    assert "4 shards, one written by each rank" in shown
    assert "1 of 4 shards" in shown


def test_settings_with_which_a_run_fits(cli):
    # Most of the memory is activations, and gradient checkpointing is the only setting left to try.
    words = [*SMOKE, "--config", "lora.yaml", "--tokens", "200", "--rows", "8", "--data.batch_size", "1"]
    words += ["--data.evaluation_tokens", "200", "--forget_quality.generate_every", "0"]
    record = planned(cli, *words, "--memory", "0.0001")
    assert (record["fits"], record["would_fit"]) == (False, [])
    ended = cli("plan", *words, "--memory", record["bytes"]["peak"] / 2**30 / 0.91)
    *_, stated, setting = ended.out.splitlines()
    assert stated == "fits with"
    assert setting.split()[0] == "--model.policy.gradient_checkpointing=true"


def plan_of(peak: float, devices: int = 2) -> Plan:
    """A plan of `peak` GiB."""
    data = {"batch_size": 4, "evaluation_tokens": 800}
    policy = {"init_args": {"gradient_checkpointing": False, "adapter": None}}
    config = {
        "data": {"init_args": data},
        "trainer": {"accumulate_grad_batches": None},
        "model": {"init_args": {"policy": policy}},
    }
    memory = SimpleNamespace(peak=peak * 2**30, reference=1, evaluation=peak * 2**30, overhead=0)
    return Plan("", config, SimpleNamespace(devices=devices, sharded=False), None, memory, 0)


@pytest.mark.parametrize(
    ("usable", "expected"),
    [
        # GiB saved by each setting are below; each that suffices alone is given.
        (6, {("--trainer.strategy=fsdp2",): 6, ("--config=lora.yaml",): 5}),
        (4, {("--model.policy.gradient_checkpointing=true", "--model.reference=StoredStates",
              "--data.batch_size=1", "--trainer.accumulate_grad_batches=4"): 4}),
        (3, {("--model.policy.gradient_checkpointing=true", "--model.reference=StoredStates",
              "--data.batch_size=1", "--trainer.accumulate_grad_batches=4", "--data.evaluation_tokens=100"): 3}),
        (-20, {}),
    ],
)  # fmt: skip
def test_remedies_alone_else_the_first_that_suffice_together(usable, expected):
    saved = {
        "--model.policy.gradient_checkpointing=true": 3, "--model.reference=StoredStates": 2,
        "--data.batch_size=1": 1, "--data.evaluation_tokens=100": 1, "--trainer.strategy=fsdp2": 4,
        "--config=lora.yaml": 5,
    }  # fmt: skip
    found = remedies(
        plan_of(10), usable / 0.9, lambda settings: plan_of(10 - sum(saved.get(each, 0) for each in settings))
    )
    assert {settings: plan.memory.peak / 2**30 for settings, plan in found.items()} == expected


def test_verdict_leaves_a_tenth_of_the_memory():
    assert verdict(plan_of(8.9), 10, {}) == ["fits: 8.9 GiB of 90% of 10 GiB"]
    first, last = verdict(plan_of(9.1), 10, {})
    assert first == "does not fit: 9.1 GiB of 90% of 10 GiB"
    assert last.endswith("use more devices")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "0"], "--devices must be a finite number >= 1 and <= 10000 (got 0)"),
        (
            ["--config", "fsdp2.yaml", "--trainer.accelerator", "auto"],
            "trainer.devices is auto with trainer.strategy fsdp2, and this machine has no GPU to count: give --devices",
        ),
        (["--memory", "0"], "--memory must be a finite number > 0 (got 0.0)"),
        (["--rows", "5"], "--rows needs --tokens"),
        (["--tokens", "1"], "--tokens must be greater than --answer_tokens, as it includes the prompt (got 1 and 1)"),
        (["--tokens", "9", "--answer_tokens", "9"], "(got 9 and 9)"),
        (["--tokens", "9", "--rows", "0"], "--rows must be at least 1 (got 0)"),
        (["--trainer.strategy", "zebra"], "whose memory can be planned (got zebra)"),
        (["--trainer.precision", "transformer-engine"], "trainer.precision must be one of 32-true, 32,"),
        (["--data.train_on", "retain"], "data.train_on is retain"),
        (["--model.policy.colour", "red"], "colour"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_one_line(words, message, cli, tmp_path):
    ended = cli("plan", *SMOKE, *words)
    assert ended.code == 2
    assert len(ended.errors) == 1
    assert message in ended.errors[0]
    assert not ended.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "case", ["StoredStates, accumulation", "LoRA, checkpointing", "SharpnessAware", "GradientRectified"]
)
def test_the_peak_of_a_step_is_within_15_percent_of_the_measured_one(case):
    script = Path(__file__).parent / "measured.py"
    done = subprocess.run([sys.executable, script, case], capture_output=True, text=True, check=True)
    peaks = json.loads(done.stdout.splitlines()[-1])
    assert peaks["planned"] == pytest.approx(peaks["measured"], rel=0.15)


def test_accumulated_gradients_are_held_during_the_backward_pass():
    from measured import Case

    case = Case("GradDiff", vocabulary=16_000, width=48, layers=2, rows=2)
    kept, freed = (replace(case, accumulates=each).planned() for each in (True, False))
    assert kept.backward - freed.backward > 0.5 * kept.gradients


def test_no_weights_are_made():
    from measured import Case

    # 10^12 parameters, more than any machine holds.
    case = Case(vocabulary=2_000_000_000)
    shapes = Shapes(
        {"forget": case.training()["forget"][:1], "retain": case.training()["retain"][:1]},
        (1, 8),
        (1, 8),
        False,
    )
    memory = memory_of(
        case.module(), shapes, Machine(1, "single device", False, True, None, None), 2_000_000_000
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


def test_memory_of_losses_in_units_of_the_logits_of_one_model():
    # In place; a copy by NumPy for the selection; the gradient and log-probabilities.
    assert LossMemory.of(GradientAscent()).extra < 0.1
    assert LossMemory.of(DiPO()).extra == pytest.approx(1.0, abs=0.3)
    assert LossMemory.of(CEU()).gradient == 1
