"""Runs to be probed: copies, since a probe's folder stands beside the run's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUICK = ("--forget_quality.generate_every", "0", "--samples.rows", "0", "--trainer.max_epochs", "1")


@pytest.fixture(scope="session")
def retain_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of smoke.yaml on the retain rows alone; not to be written to."""
    from dipo_pl.cli.run import run

    folder = tmp_path_factory.mktemp("retain_only")
    overlay = ("--model", "FineTuning", "--config", "retain_only.yaml")
    assert run(["fit", "--config", "smoke.yaml", *overlay, *QUICK, "--output_dir", str(folder)]) == 0
    return folder / "smoke-retain_only"


@pytest.fixture
def runs(tmp_path: Path, smoke: Path, retain_only: Path) -> Path:
    """A folder runs/ with `unlearned` and `retain-only`, of the same forget rows."""
    shutil.copytree(smoke, tmp_path / "runs" / "unlearned")
    shutil.copytree(retain_only, tmp_path / "runs" / "retain-only")
    return tmp_path / "runs"


@pytest.fixture
def manifest() -> Callable[..., dict[str, Any]]:
    """The manifest of a run folder, with what is given changed in it."""

    def read(run: Path, **changes: Any) -> dict[str, Any]:
        content = json.loads((run / "manifest.json").read_text()) | changes
        if changes:
            (run / "manifest.json").write_text(json.dumps(content))
        return content

    return read
