"""A finished run to purge, and the run that it started from."""

import json
import shutil

import pytest


@pytest.fixture
def run(tmp_path, smoke):
    """A copy of a finished run, with what a longer one has beside."""
    copy = tmp_path / "runs" / "smoke"
    shutil.copytree(smoke, copy)
    (copy / "reference").mkdir()
    (copy / "reference" / "states.safetensors").write_bytes(b"Mira Holloway")
    (copy / "error.log").write_text("a row")
    probe = tmp_path / "runs" / "smoke-relearn"
    probe.mkdir()
    (probe / "manifest.json").write_text(json.dumps({"probe": {"kind": "relearning", "of": "runs/smoke"}}))
    return copy


@pytest.fixture
def target(run, manifest, smoke):
    """The run that ended with the model that `run` started from."""
    target = run.with_name("target")
    shutil.copytree(smoke, target)
    ended_with = manifest(target)["policy"]["weights_at_end"]
    changed = {"source": str(target / "hf"), "weights_at_start": ended_with}
    manifest(run, policy=manifest(run)["policy"] | changed)
    return target
