"""Runs to probe: copies, because a probe's folder is beside the run's."""

import shutil
from pathlib import Path

import pytest

QUICK = ("--forget_quality.generate_every", "0", "--samples.rows", "0", "--trainer.max_epochs", "1")


@pytest.fixture(scope="session")
def retain_only(fit_once) -> Path:
    """The folder of a finished run of smoke.yaml on the retain rows alone; not to be written to."""
    overlay = ("--model", "FineTuning", "--config", "retain_only.yaml")
    return fit_once("smoke-retain-only", "--config", "smoke.yaml", *overlay, *QUICK) / "smoke-retain_only"


@pytest.fixture
def runs(tmp_path: Path, smoke: Path, retain_only: Path) -> Path:
    """A folder runs/ with `unlearned` and `retain-only`, of the same forget rows."""
    shutil.copytree(smoke, tmp_path / "runs" / "unlearned")
    shutil.copytree(retain_only, tmp_path / "runs" / "retain-only")
    return tmp_path / "runs"
