"""A write that fails, a checkpoint that is damaged, another model: one line, and what was there before stays whole."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import forked
import pytest
import torch
from at_step import at
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dipo_pl.__main__ import main
from dipo_pl.storage.checkpoints import read_checkpoint

RUN = ("fit", "--config", "smoke.yaml", "--forget_quality.generate_every", "0", "--data.evaluation_rows", "3")
THREE_EPOCHS = (*RUN, "--trainer.max_epochs", "3")
# A run that goes on for more epochs has the same rates.
CONSTANT = (*RUN, "--model.schedule", "constant_with_warmup", "--model.warmup", "0")


@pytest.fixture(scope="module")
def whole(fit_once) -> Path:
    return fit_once("three-epochs", *THREE_EPOCHS[1:]) / "smoke"


def same(whole: Path, run: Path) -> bool:
    files = ("metrics.jsonl", "hf/model.safetensors")
    return all((whole / each).read_bytes() == (run / each).read_bytes() for each in files)


def step_of(checkpoint: str) -> int:
    return torch.load(f"runs/smoke/checkpoints/{checkpoint}.ckpt", weights_only=True)["global_step"]


def test_a_full_disk_leaves_the_last_good_checkpoint(cli, process, tmp_path, whole):
    ended = process(*THREE_EPOCHS, *at("Starve"))
    assert ended.code == 1
    (line,) = ended.errors
    assert "cannot write runs/smoke/checkpoints/next.ckpt (File too large): free disk space" in line
    assert step_of("last") == 3
    assert sorted(each.name for each in Path("runs/smoke/checkpoints").iterdir()) == ["last.ckpt"]
    again = cli(*THREE_EPOCHS)
    assert again.code == 0, again.err
    assert same(whole, Path("runs/smoke"))


def on_a_disk_of_its_own(words: tuple[str, ...]) -> int:
    """Run a command where runs/ is a small disk, in a namespace of mounts that ends with the process; keep its files."""
    user, group = os.getuid(), os.getgid()
    new_user, new_mounts = 0x10000000, 0x00020000
    assert ctypes.CDLL(None, use_errno=True).unshare(new_user | new_mounts) == 0, os.strerror(
        ctypes.get_errno()
    )
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", "runs"], check=True)
    code = main([*words])
    Path("kept").mkdir()
    subprocess.run("rm -f runs/ballast; cp -a runs/. kept", shell=True, check=True)
    return code


@pytest.mark.parametrize(("how", "line"), [
    ("FillDisk", "cannot write runs/smoke/evaluation/step-000006.json (No space left on device): free disk space"),
    ("LockDisk", "Read-only file system: "),
])  # fmt: skip
def test_a_disk_that_fails_leaves_the_last_good_checkpoint(cli, tmp_path, whole, how, line):
    Path("runs").mkdir()
    words = (*THREE_EPOCHS, *at(how))
    child = forked.fork(lambda: on_a_disk_of_its_own(words), Path("out"), Path("err"))
    code, err = forked.wait(child), Path("err").read_text()
    assert code == 1, err
    (said,) = [each for each in err.splitlines() if each.startswith("dipo-pl: ")]
    assert line in said
    assert "Traceback" not in err
    Path("runs").rmdir()
    Path("kept").rename("runs")
    assert [each.name for each in Path("runs/smoke/checkpoints").iterdir()] == ["last.ckpt"]
    assert step_of("last") == 3
    assert not any(Path("runs").rglob("*.tmp"))
    again = cli(*THREE_EPOCHS)
    assert again.code == 0, again.err
    assert same(whole, Path("runs/smoke"))


def test_a_kill_among_shards_leaves_the_last_good_checkpoint(cli, process, tmp_path, whole):
    """A shard of the second checkpoint is written, and the others are not."""
    sharded = ("--config", "sharded_checkpoints.yaml", "--name", "smoke", "--trainer.max_epochs", "3")
    ended = process(*RUN, *sharded, *at("KillAmongShards", step=5))
    assert ended.code == -signal.SIGKILL
    checkpoints = Path("runs/smoke/checkpoints")
    assert sorted(each.name for each in checkpoints.iterdir()) == [".next.ckpt.tmp", "last.ckpt"]
    assert read_checkpoint(checkpoints / "last.ckpt")["global_step"] == 3
    # On one device without parts; its last checkpoint is a file, the one before it a folder.
    again = cli(*THREE_EPOCHS)
    assert again.code == 0, again.err
    assert "resuming from runs/smoke/checkpoints/last.ckpt" in again.err
    for name, ours in load_file("runs/smoke/hf/model.safetensors").items():
        torch.testing.assert_close(ours, load_file(whole / "hf/model.safetensors")[name])
    assert sorted(each.name for each in checkpoints.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_what_cannot_be_written_is_said_in_a_line(cli):
    Path("runs/smoke").mkdir(parents=True)
    Path("runs/smoke/checkpoints").write_text("a file in the folder's place")
    ended = cli(*RUN)
    assert ended.code == 1
    (line,) = ended.errors
    assert "cannot write runs/smoke/checkpoints/next.ckpt (" in line


def test_two_at_a_time_do_not_write_into_one_folder(cli, tmp_path, whole):
    first = forked.command([*THREE_EPOCHS, *at("Wait")], tmp_path / "out", folder=tmp_path)
    deadline = time.monotonic() + 120
    while not Path("acted").exists():
        assert time.monotonic() < deadline, Path("out").read_text()
        time.sleep(0.1)
    before = {each: each.read_bytes() for each in Path("runs").rglob("*") if each.is_file()}
    second = cli(*THREE_EPOCHS)
    assert second.code == 2
    assert second.errors == [
        "dipo-pl: error: runs/smoke is used by another process: wait until it has ended, or give another --name"
    ]
    assert before == {each: each.read_bytes() for each in Path("runs").rglob("*") if each.is_file()}
    os.kill(first, signal.SIGKILL)
    forked.wait(first)
    assert cli(*THREE_EPOCHS).code == 0
    assert same(whole, Path("runs/smoke"))


@pytest.fixture(scope="module")
def two_epochs(fit_once) -> Path:
    return fit_once("two-epochs", *CONSTANT[1:], "--trainer.max_epochs", "2") / "smoke"


def test_a_checkpoint_of_weights_alone_is_passed_over(cli, two_epochs):
    shutil.copytree(two_epochs, "runs/smoke")
    last = Path("runs/smoke/checkpoints/last.ckpt")
    content = torch.load(last, weights_only=True)
    del content["optimizer_states"]
    torch.save(content, last)
    ended = cli(*CONSTANT, "--trainer.max_epochs", "3")
    assert ended.code == 0, ended.err
    why = f"{last} holds weights alone, without the optimizer's state"
    assert f"warning: {why}: resuming from the previous checkpoint" in ended.err
    assert (step_of("previous"), step_of("last")) == (6, 9)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-100]), Path.unlink], ids=["bit", "cut", "gone"]
)  # fmt: skip
def test_the_checkpoint_before_stands_in_for_a_damaged_one(cli, two_epochs, damage):
    shutil.copytree(two_epochs, "runs/smoke")
    shutil.copytree(two_epochs, "runs/straight")
    assert (step_of("previous"), step_of("last")) == (3, 6)
    damage(Path("runs/smoke/checkpoints/last.ckpt"))
    ended = cli(*CONSTANT, "--trainer.max_epochs", "3")
    assert ended.code == 0, ended.err
    assert "resuming from runs/smoke/checkpoints/previous.ckpt" in ended.err
    if damage is not Path.unlink:
        assert "warning: cannot read the checkpoint runs/smoke/checkpoints/last.ckpt (" in ended.err
        assert "): resuming from the previous checkpoint" in ended.err
    assert (step_of("previous"), step_of("last")) == (6, 9)
    assert cli(*CONSTANT, "--trainer.max_epochs", "3", "--name", "straight").code == 0
    assert same(Path("runs/straight"), Path("runs/smoke"))


def test_a_damaged_one_does_not_become_the_one_before(cli, two_epochs):
    """Or a run killed in its first save after falling back would have nothing left."""
    shutil.copytree(two_epochs, "runs/smoke")
    flip(Path("runs/smoke/checkpoints/last.ckpt"))
    seldom = ("--last_checkpoint.every_n_epochs", "3")
    assert cli(*CONSTANT, *seldom, "--trainer.max_epochs", "3").code == 0
    assert (step_of("previous"), step_of("last")) == (3, 9)


def test_none_that_can_be_read(cli, two_epochs):
    shutil.copytree(two_epochs, "runs/smoke")
    for each in Path("runs/smoke/checkpoints").iterdir():
        flip(each)
    ended = cli(*CONSTANT, "--trainer.max_epochs", "3")
    assert ended.code == 2
    (line,) = ended.errors
    assert "cannot read the checkpoint runs/smoke/checkpoints/last.ckpt (" in line
    assert "remove it and previous.ckpt to start afresh" in line


def test_one_checkpoint_alone_where_the_disk_is_small(cli):
    assert cli(*RUN, "--last_checkpoint.previous", "false").code == 0
    assert [each.name for each in Path("runs/smoke/checkpoints").iterdir()] == ["last.ckpt"]


def other_weights(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(folder)


def other_tokenizer(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def other_batch(folder: Path) -> None:
    manifest = Path("runs/smoke/manifest.json")
    record = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(record | {"global_batch": 2 * record["global_batch"]}))


@pytest.mark.parametrize(("change", "line"), [
    (other_weights, "the weights of model are not those that the checkpoint's training started from"),
    (other_tokenizer, "the tokenizer differs from the one that runs/smoke was trained with ("),
    (other_batch, "the global batch size must be 16, as runs/smoke was trained with (got 8 with 1 device(s))"),
])  # fmt: skip
def test_a_run_goes_on_only_as_it_began(cli, whole, change, line):
    shutil.copytree(whole / "hf", "model")
    command = (*RUN, "--model.policy", "Pretrained", "--model.policy.path", "model")
    assert cli(*command, "--trainer.max_epochs", "1").code == 0
    before = Path("runs/smoke/checkpoints/last.ckpt").read_bytes()
    change(Path("model"))
    ended = cli(*command, "--trainer.max_epochs", "2")
    assert ended.code == 2
    assert line in ended.errors[0]
    assert Path("runs/smoke/checkpoints/last.ckpt").read_bytes() == before
