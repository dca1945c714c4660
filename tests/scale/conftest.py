"""All ways to split one training, run once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
from ranks import run_all
from split_training import ALONE, CUT, RELEARNING, SHARDED, SHARED, command


@pytest.fixture(scope="session")
def runs(once: Callable[..., Path]) -> Path:
    """The folder of all these runs, of some that change from one strategy to another midway, and of probes."""
    return once("scale", make_runs)


def make_runs(folder: Path) -> None:
    from dipo_pl.__main__ import main as run

    for name, (method, split) in ALONE.items():
        assert run(command(folder, name, method, *split)) == 0
    for name in ("to fsdp2", "to shards"):
        assert run(command(folder, name, "dipo", *ALONE["dipo"][1], *CUT)) == 0
    commands = [command(folder, name, method, *split) for name, (method, split) in SHARED.items()]
    on_fsdp2 = SHARED["dipo on fsdp2"][1]
    commands.append(command(folder, "to fsdp2", "dipo", *on_fsdp2))
    commands.append(command(folder, "from fsdp2", "dipo", *on_fsdp2, *CUT))
    commands += in_shards(folder)
    relearning = ["relearn", str(folder / "dipo"), *RELEARNING, "--name"]
    assert run([*relearning, "relearn"]) == 0
    commands.append(
        [*relearning, "relearn-on-fsdp2", "--trainer.num_nodes", "2", "--trainer.strategy", "fsdp2"]
    )
    forked.run_ranks(lambda rank: run_all(commands, rank), folder, forked.nodes(), timeout=240)
    assert run(command(folder, "from fsdp2", "dipo", *ALONE["dipo 4 x 2"][1])) == 0
    from_shards(folder)


def in_shards(folder: Path) -> list[list[str]]:
    """Checkpoints that two ranks write in shards, or go on from."""

    def sharded(name: str, *more: str) -> list[str]:
        return command(folder, name, "dipo", *SHARDED, *more)

    shard = (
        folder
        / "damaged-shards"
        / "checkpoints"
        / "last.ckpt"
        / "shard-00002-model-00001-of-00001.safetensors"
    )
    best = ("--checkpoint.monitor", "retain_probability", "--checkpoint.mode", "max", "--export.best", "true")
    return [
        sharded("to shards", *best),
        sharded("in shards", *CUT),
        sharded("damaged shards", *CUT),
        ["damage", str(shard)],
        ["starve", *sharded("damaged shards")],
        sharded("damaged shards"),
    ]


def from_shards(folder: Path) -> None:
    """A run that two ranks have cut short in shards goes on in one process, from them and from one file of them."""
    from dipo_pl.__main__ import main

    in_shards = folder / "in-shards"
    for name in ("shards alone", "shards in one"):
        copy = folder / name.replace(" ", "-")
        shutil.copytree(in_shards, copy)
        if name == "shards in one":
            last = copy / "checkpoints" / "last.ckpt"
            shutil.rmtree(last)
            assert main(["consolidate", str(in_shards), "--output", str(last)]) == 0
        assert main(command(folder, name, "dipo", *ALONE["dipo 4 x 2"][1])) == 0
