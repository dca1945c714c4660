"""`dipo-pl sequence` from a GGUF file: where stages start, a file that has changed, and one that is gone."""

import shutil
from pathlib import Path

import pytest
from gguf_files import llama, write_gguf
from sequence_inputs import NAMES, write_inputs, write_requests

from dipo_pl.commands.sequence.stages import weights_sample

RUN = (
    "sequence",
    "deletions.yaml",
    "--name",
    "s",
    "--trainer.max_epochs",
    "1",
    "--forget_quality.generate_every",
    "0",
)


@pytest.mark.parametrize("mode", ["sustainability", "scalability"])
def test_a_sequence_starts_from_a_file(cli, tmp_path, manifest, mode):
    write_inputs(tmp_path)
    file = write_gguf(tmp_path / "model" / "tiny.gguf")
    # So that the folder alone would not do.
    shutil.copy(file, file.with_name("other.gguf"))
    write_requests(tmp_path, requests=NAMES[:2], mode=mode)
    run = (*RUN, "--model.policy.path", "model", "--model.policy.gguf_file", "tiny.gguf")
    ended = cli(*run)
    assert ended.code == 0, ended.err
    first, second = (manifest(Path(f"runs/s/stage-{number}")) for number in (1, 2))
    is_chained = mode == "sustainability"
    assert first["policy"]["source"] == "model/tiny.gguf"
    assert second["policy"]["source"] == ("runs/s/stage-1/hf" if is_chained else "model/tiny.gguf")
    sample = weights_sample(file)
    assert sample is not None
    assert first["sequence"]["start"] == sample
    assert (second["sequence"]["start"] == sample) is not is_chained
    write_gguf(file, llama(seed=1))
    changed = cli(*run)
    assert changed.code == 2
    assert "runs/s/stage-1 started from model before that model changed" in changed.errors[0]
    file.unlink()
    assert cli(*run).code == 0


def test_a_retain_only_model_may_be_a_file(cli, tmp_path, manifest):
    write_inputs(tmp_path)
    write_gguf(tmp_path / "model.gguf")
    write_gguf(tmp_path / "retain.gguf", llama(seed=1))
    write_requests(tmp_path, requests=NAMES[:1], retain_only="retain.gguf")
    ended = cli(*RUN, "--model.policy.path", "model.gguf")
    assert ended.code == 0, ended.err
    assert manifest(Path("runs/s/stage-1-retain_only"))["policy"]["source"] == "retain.gguf"
    assert manifest(Path("runs/s/stage-1"))["sequence"]["retain_only"] == weights_sample(
        tmp_path / "retain.gguf"
    )


def test_a_missing_retain_only_file_is_said(cli, tmp_path):
    write_inputs(tmp_path)
    write_gguf(tmp_path / "model.gguf")
    write_requests(tmp_path, requests=NAMES[:1], retain_only="retain.gguf")
    ended = cli(*RUN, "--model.policy.path", "model.gguf")
    assert ended.code == 2
    assert "retain_only: no GGUF file retain.gguf" in ended.errors[0]
    assert not Path("runs/s/stage-1").exists()
