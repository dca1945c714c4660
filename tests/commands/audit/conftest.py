"""Runs to audit: copies, because an audit's folder is beside the run's."""

import shutil
from pathlib import Path

import pytest
import yaml
from audit_inputs import QUICK
from audit_runs import make_runs


@pytest.fixture
def world(once, tmp_path):
    """A copy of a folder of runs, as the working folder of commands."""
    shutil.copytree(once("audit-runs", make_runs), tmp_path, dirs_exist_ok=True)
    # Their paths are those of the copy.
    for config in tmp_path.glob("runs/*/config.yaml"):
        text = yaml.safe_load(config.read_text())
        for part in (text["data"]["init_args"], text["model"]["init_args"]["policy"]["init_args"]):
            part.update({key: Path(each).name for key, each in part.items() if isinstance(each, str)})
        config.write_text(yaml.safe_dump(text))
    (tmp_path / "quick.yaml").write_text(QUICK)
    return tmp_path


@pytest.fixture
def refused_line(world, cli):
    """Run a command that fails with one line and writes nothing, and return the line."""

    def run(*words):
        before = {path for path in world.rglob("*") if path.is_file()}
        ended = cli(*words)
        assert (ended.code, len(ended.errors)) == (2, 1), ended.err
        assert {path for path in world.rglob("*") if path.is_file()} == before
        return ended.errors[0]

    return run
