"""A small target, and a folder with what a sequence of requests needs."""

from pathlib import Path

import pytest
from sequence_inputs import NAMES, TARGET, write_inputs, write_requests


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory, fit_once) -> Path:
    """The folder of a finished run that made a target; not to be written to."""
    folder = tmp_path_factory.mktemp("target")
    write_inputs(folder)
    data = [f"--data.{name}={folder / TARGET['data']['init_args'][name]}" for name in ("forget", "retain")]
    return fit_once("target", "--config", folder / "target.yaml", *data) / "target"


@pytest.fixture
def inputs(tmp_path: Path, target: Path) -> Path:
    """The folder that a test runs in, with the target's run linked into it."""
    write_inputs(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "target").symlink_to(target)
    write_requests(tmp_path, requests=NAMES[:2])
    return tmp_path
