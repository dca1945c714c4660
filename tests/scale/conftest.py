"""All ways to split one training, run once."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from split_training import ALONE, CUT, RELEARNING, SHARED, command, on_two_nodes


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all these runs, of two that change from one process to two ranks or back midway, and of probes."""
    from dipo_pl.__main__ import main as run

    folder = tmp_path_factory.mktemp("scale")
    for name, (method, split) in ALONE.items():
        assert run(command(folder, name, method, *split)) == 0
    assert run(command(folder, "to fsdp2", "dipo", *ALONE["dipo"][1], *CUT)) == 0
    commands = [command(folder, name, method, *split) for name, (method, split) in SHARED.items()]
    on_fsdp2 = SHARED["dipo on fsdp2"][1]
    commands.append(command(folder, "to fsdp2", "dipo", *on_fsdp2))
    commands.append(command(folder, "from fsdp2", "dipo", *on_fsdp2, *CUT))
    relearning = ["relearn", str(folder / "dipo"), *RELEARNING, "--name"]
    assert run([*relearning, "relearn"]) == 0
    commands.append(
        [*relearning, "relearn-on-fsdp2", "--trainer.num_nodes", "2", "--trainer.strategy", "fsdp2"]
    )
    on_two_nodes(folder, commands)
    assert run(command(folder, "from fsdp2", "dipo", *ALONE["dipo 4 x 2"][1])) == 0
    return folder
