"""ZeRO-2 on two ranks ends where one process does. `make test-deepspeed` runs this: `make test` has no DeepSpeed."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scale"))
from split_training import ALONE, CUT, TWO, command, on_two_nodes
from test_equal_results import difference, weights

ZERO = (*TWO, "deepspeed_stage_2")


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    from dipo_pl.cli import run

    folder = tmp_path_factory.mktemp("zero")
    for name in ("dipo", "stored", "lora"):
        assert run(command(folder, name, name, *ALONE[name][1])) == 0
    assert run(command(folder, "to zero", "dipo", *ALONE["dipo"][1], *CUT)) == 0
    commands = [command(folder, f"{name} on zero", name, *ZERO) for name in ("dipo", "lora")]
    commands += [command(folder, "stored on zero", "stored", *ZERO, *cut) for cut in (CUT, ())]
    commands += [command(folder, "to zero", "dipo", *ZERO), command(folder, "from zero", "dipo", *ZERO, *CUT)]
    on_two_nodes(folder, commands, Path(__file__).with_name("zero_ranks.py"))
    assert run(command(folder, "from zero", "dipo", *ALONE["dipo"][1])) == 0
    return folder


@pytest.mark.parametrize(
    ("zero", "alone"),
    [
        ("dipo-on-zero", "dipo"),
        ("stored-on-zero", "stored"),
        ("lora-on-zero", "lora"),
        ("to-zero", "dipo"),
        ("from-zero", "dipo"),
    ],
)
def test_zero_ends_where_one_process_does(runs, zero, alone):
    assert difference(weights(runs / zero), weights(runs / alone)) < 2e-5
    manifests = [json.loads((runs / name / "manifest.json").read_text()) for name in (zero, alone)]
    assert manifests[0]["policy"]["weights_at_start"] == manifests[1]["policy"]["weights_at_start"]
    assert manifests[0]["global_batch"] == 8


def test_checkpoints_are_files(runs):
    assert (runs / "dipo-on-zero" / "checkpoints" / "last.ckpt").is_file()
