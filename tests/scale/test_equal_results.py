"""However a step's rows are split over time and devices, a method over sequences ends with the same weights."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dipo_pl.storage.checkpoints import read_checkpoint


def weights(run):
    return load_file(run / "hf" / "model.safetensors")


def evaluations(run):
    """The figures of all evaluations but that of a run cut short, by step, and every row's losses in the last one."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = json.loads(sorted((run / "evaluation").iterdir())[-1].read_text())
    losses_of_rows = [torch.tensor(row["nll"]) for each in last["sets"].values() for row in each["rows"]]
    return {each["step"]: each for each in records if each["step"] != 5}, losses_of_rows


def difference(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.parametrize(("split", "whole"), [
    ("dipo-4-x-2", "dipo"),
    ("dipo-8-x-1", "dipo"),
    ("dipo-accumulated", "dipo"),
    ("dipo-on-ddp", "dipo"),
    ("dipo-accumulated-on-ddp", "dipo"),
    ("dipo-on-fsdp2", "dipo"),
    ("npo-on-fsdp2", "npo"),
    ("stored-on-fsdp2", "stored"),
    ("lora-on-fsdp", "lora"),
    ("rmu-on-ddp", "rmu"),
    ("part-on-ddp", "part"),
    ("part-on-fsdp2", "part"),
    ("adapted-on-fsdp2", "adapted"),
    ("sam-on-ddp", "sam"),
    ("sam-on-fsdp2", "sam"),
    ("gru-on-ddp", "gru"),
    ("gru-on-fsdp2", "gru"),
    ("sam-lora-on-fsdp2", "sam-lora"),
    ("to-fsdp2", "dipo"),
    ("from-fsdp2", "dipo"),
    ("to-shards", "dipo"),
    ("damaged-shards", "dipo"),
    ("shards-alone", "dipo"),
    ("shards-in-one", "dipo"),
])  # fmt: skip
def test_split_ends_where_the_whole_does(runs, split, whole):
    split, whole = runs / split, runs / whole
    # A step of AdamW is 1e-3 for every weight.
    assert difference(weights(split), weights(whole)) < 2e-5
    (ours, our_rows), (theirs, their_rows) = evaluations(split), evaluations(whole)
    steps, rows = (4, 12) if whole.name == "adapted" else (6, 8)
    assert ours.keys() == theirs.keys() >= {steps}
    for step in ours:
        assert ours[step].keys() == theirs[step].keys()
        for name, value in ours[step].items():
            its = theirs[step][name]
            assert value == (pytest.approx(its, rel=1e-4, abs=1e-6) if isinstance(its, float) else its), name
    torch.testing.assert_close(our_rows, their_rows, rtol=1e-4, atol=1e-5)
    manifests = [json.loads((run / "manifest.json").read_text()) for run in (split, whole)]
    assert manifests[0]["global_batch"] == manifests[1]["global_batch"] == rows
    starts = [each["policy"]["weights_at_start"] for each in manifests]
    assert starts[0] == starts[1]


def test_step_schemes_end_elsewhere(runs):
    """What is the same for all splits is not what it is without a scheme."""
    assert difference(weights(runs / "sam"), weights(runs / "npo")) > 1e-3
    assert difference(weights(runs / "gru"), weights(runs / "dipo")) > 1e-3


def step_of(checkpoint):
    return read_checkpoint(checkpoint)["global_step"]


def test_shards_are_gone_on_with_where_they_end(runs):
    """A run that began anew would end with the same weights."""
    for name in ("to-shards", "shards-alone", "shards-in-one"):
        assert step_of(runs / name / "checkpoints" / "previous.ckpt") == 5
    last = runs / "in-shards" / "checkpoints" / "last.ckpt"
    # Written by two, each what it has; read by one, from these or from one file.
    sizes = [sum(each.stat().st_size for each in last.glob(f"shard-0000{rank + 1}-*")) for rank in range(2)]
    assert max(sizes) < 1.1 * min(sizes)
    assert (runs / "shards-alone" / "checkpoints" / "previous.ckpt").is_dir()
    assert (runs / "shards-in-one" / "checkpoints" / "previous.ckpt").is_file()
    best = runs / "to-shards" / "checkpoints" / "epoch=1-step=6.ckpt"
    assert best.is_dir()
    assert json.loads((runs / "to-shards" / "manifest.json").read_text())["exported_step"] == 6


def test_faults_of_one_rank_are_told_by_all_and_outlived(runs):
    checkpoints = runs / "damaged-shards" / "checkpoints"
    said = [(runs / f"rank{rank}.log").read_text() for rank in range(2)]
    shard = "shard-00002-model-00001-of-00001.safetensors"
    damaged = f"cannot read the checkpoint {checkpoints / 'last.ckpt'} ({shard} is damaged): resuming"
    assert said[0].count(damaged) == said[0].count(f"resuming from {checkpoints / 'previous.ckpt'}") == 2
    for each in said:
        assert each.count(f"cannot write {checkpoints / 'next.ckpt'} (File too large): free disk space") == 1
    assert (step_of(checkpoints / "previous.ckpt"), step_of(checkpoints / "last.ckpt")) == (3, 6)
    assert {each.name for each in checkpoints.iterdir()} == {"previous.ckpt", "last.ckpt"}


def test_relearning_is_the_same_on_any_number_of_devices(runs):
    """Eight rows a step, whatever the probed run had; here they are one."""
    alone, shared = (runs / f"dipo-{name}" for name in ("relearn", "relearn-on-fsdp2"))
    assert difference(weights(shared), weights(alone)) < 1e-6
    assert difference(weights(alone), weights(runs / "dipo")) > 1e-4
    (ours, our_rows), (theirs, their_rows) = evaluations(shared), evaluations(alone)
    assert [each.keys() for each in ours.values()] == [each.keys() for each in theirs.values()]
    torch.testing.assert_close(our_rows, their_rows, rtol=1e-4, atol=1e-5)
    manifests = [json.loads((run / "manifest.json").read_text()) for run in (shared, alone)]
    assert [each["world_size"] for each in manifests] == [2, 1]
    assert [each["global_batch"] for each in manifests] == [8, 8]
    assert {each["probe"]["of"] for each in manifests} == {str(runs / "dipo")}


def test_token_means_depend_on_the_split(runs):
    """GradDiff's mean is over tokens: rows of a small batch count more where they are short."""
    assert difference(weights(runs / "graddiff"), weights(runs / "graddiff-4-x-2")) > 1e-3


def test_export_of_shards_is_one_ordinary_folder(runs):
    folders = [runs / name / "hf" for name in ("stored-on-fsdp2", "stored")]
    ours, theirs = (AutoModelForCausalLM.from_pretrained(each) for each in folders)
    assert type(ours) is type(theirs)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    assert ours.config.to_dict() | {"_name_or_path": ""} == theirs.config.to_dict() | {"_name_or_path": ""}
    assert {each.name for each in folders[0].iterdir()} == {each.name for each in folders[1].iterdir()}
