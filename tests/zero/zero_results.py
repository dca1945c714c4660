"""ZeRO on two ranks ends where one process does. `make test-deepspeed` runs this: `make test` has no DeepSpeed."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scale"))
from split_training import ALONE, CUT, TWO, command, on_two_nodes
from test_equal_results import difference, evaluations, weights

from dipo_pl.storage.checkpoint_io import read_checkpoint

RANKS = Path(__file__).with_name("zero_ranks.py")
STAGES = ("2", "3")
# No two ranks can share a row of 33 evenly.
ODD = (
    "--model.policy.config.hidden_size", "33", "--model.policy.config.head_dim", "16",
    "--model.policy.config.num_attention_heads", "1", "--model.policy.config.num_key_value_heads", "1",
)  # fmt: skip
SHARDS = ("--config", "sharded_checkpoints.yaml")


def on(stage: str) -> tuple[str, ...]:
    return (*TWO, f"deepspeed_stage_{stage}")


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    from dipo_pl.cli.app import run

    folder = tmp_path_factory.mktemp("zero")
    for name in ("dipo", "stored", "lora", "adapted"):
        assert run(command(folder, name, name, *ALONE[name][1])) == 0
    assert run(command(folder, "odd", "dipo", *ALONE["dipo"][1], *ODD)) == 0
    commands = []
    for stage in STAGES:
        assert run(command(folder, f"to {stage}", "dipo", *ALONE["dipo"][1], *CUT)) == 0
        commands += [command(folder, f"{name} on {stage}", name, *on(stage)) for name in ("dipo", "lora")]
        for cut in (CUT, ()):
            commands.append(command(folder, f"stored on {stage}", "stored", *on(stage), *cut))
            commands.append(command(folder, f"odd on {stage}", "dipo", *on(stage), *ODD, *cut))
        commands.append(command(folder, f"to {stage}", "dipo", *on(stage)))
        commands.append(command(folder, f"from {stage}", "dipo", *on(stage), *CUT))
    commands.append(command(folder, "adapted on 3", "adapted", *on("3")))
    commands.append(command(folder, "from fsdp2 to 3", "dipo", *TWO, "fsdp2", *SHARDS, *CUT))
    commands.append(command(folder, "from fsdp2 to 3", "dipo", *on("3")))
    on_two_nodes(folder, commands, RANKS)
    for stage in STAGES:
        assert run(command(folder, f"from {stage}", "dipo", *ALONE["dipo"][1])) == 0
    return folder


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("zero", "alone"),
    [
        ("dipo-on", "dipo"),
        ("stored-on", "stored"),
        ("lora-on", "lora"),
        ("odd-on", "odd"),
        ("adapted-on", "adapted"),
        ("to", "dipo"),
        ("from", "dipo"),
        ("from-fsdp2-to", "dipo"),
    ],
)
def test_zero_ends_where_one_process_does(runs, zero, alone, stage):
    run = runs / f"{zero}-{stage}"
    if stage == "2" and not run.exists():
        pytest.skip("of ZeRO-3 alone")
    assert difference(weights(run), weights(runs / alone)) < 2e-5
    manifests = [json.loads((each / "manifest.json").read_text()) for each in (run, runs / alone)]
    assert manifests[0]["policy"]["weights_at_start"] == manifests[1]["policy"]["weights_at_start"]
    assert manifests[0]["global_batch"] == manifests[1]["global_batch"]


@pytest.mark.parametrize("stage", STAGES)
def test_measures_and_answers_are_the_same(runs, stage):
    (ours, our_rows), (theirs, their_rows) = (
        evaluations(runs / each) for each in (f"stored-on-{stage}", "stored")
    )
    assert ours.keys() == theirs.keys() >= {0, 3, 6}
    for step, figures in theirs.items():
        for name, value in figures.items():
            expected = pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value
            assert ours[step][name] == expected, name
    torch.testing.assert_close(our_rows, their_rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "run", ["to-2", "from-2", "to-3", "from-3", "stored-on-3", "odd-on-3", "from-fsdp2-to-3"]
)
def test_it_is_gone_on_with(runs, run):
    """A run that began anew would end with the same weights."""
    assert read_checkpoint(runs / run / "checkpoints" / "previous.ckpt")["global_step"] == 5


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_are_files_of_the_same_content(runs, stage):
    ours, theirs = (
        torch.load(runs / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in (f"dipo-on-{stage}", "dipo")
    )
    assert difference(ours["state_dict"], theirs["state_dict"]) < 2e-5
    ours, theirs = (each["optimizer_states"][0]["state"] for each in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for number, state in theirs.items():
        assert ours[number].keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(ours[number][name].cpu(), value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("stage", "method", "more", "said"),
    [
        ("2", "rmu", (), "no loss here looks at the output head"),
        ("3", "dipo", ("--model.optimizer", "two_groups.TwoGroups"), "TwoGroups has 2 groups of parameters"),
    ],
)
def test_what_it_cannot_do_is_said_in_one_line(tmp_path, stage, method, more, said):
    with pytest.raises(AssertionError, match=f"dipo-pl: error: .*{said}"):
        on_two_nodes(tmp_path, [command(tmp_path, "refused", method, *on(stage), *more)], RANKS)
