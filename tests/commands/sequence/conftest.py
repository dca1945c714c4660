"""A small target, and a folder with what a sequence of requests needs."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from sequence_inputs import NAMES, TARGET, write_inputs, write_requests


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that made a target; not to be written to."""
    from dipo_pl.cli.run import run

    folder = tmp_path_factory.mktemp("target")
    write_inputs(folder)
    data = [f"--data.{name}={folder / TARGET['data']['init_args'][name]}" for name in ("forget", "retain")]
    words = ["fit", "--config", str(folder / "target.yaml"), *data, "--output_dir", str(folder / "runs")]
    assert run(words) == 0
    return folder / "runs" / "target"


@pytest.fixture
def inputs(tmp_path: Path, target: Path) -> Path:
    """The folder that a test runs in, with the target's run linked into it."""
    write_inputs(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "target").symlink_to(target)
    write_requests(tmp_path, requests=NAMES[:2])
    return tmp_path
