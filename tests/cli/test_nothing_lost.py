"""A write that fails, a checkpoint that is damaged, another model: one line, and what was there before stays whole."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dipo_pl.storage.checkpoints import read_checkpoint

RUN = ("fit", "--config", "smoke.yaml", "--forget_quality.generate_every", "0", "--data.evaluation_rows", "3")

STARVE = """
import resource

from lightning import Callback


class Starve(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
"""


KILL = """
import os
import signal

from lightning import Callback

from dipo_pl.storage import sharded_checkpoint


class KillMidway(Callback):
    def on_train_batch_start(self, trainer, *_):
        def killed(path):
            assert path.stat().st_size and not (path.parent / "checkpoint.pt").exists()
            os.kill(os.getpid(), signal.SIGKILL)

        if trainer.global_step == 5:
            sharded_checkpoint._checksum = killed
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dipo_pl.cli.run import run

    folder = tmp_path_factory.mktemp("whole")
    assert run([*RUN, "--trainer.max_epochs", "3", "--output_dir", str(folder)]) == 0
    return folder / "smoke"


def same(whole: Path, run: Path) -> bool:
    files = ("metrics.jsonl", "hf/model.safetensors")
    return all((whole / each).read_bytes() == (run / each).read_bytes() for each in files)


def step_of(checkpoint: str) -> int:
    return torch.load(f"runs/smoke/checkpoints/{checkpoint}.ckpt", weights_only=True)["global_step"]


def test_a_full_disk_leaves_the_last_good_checkpoint(cli, process, tmp_path, whole):
    (tmp_path / "starve.py").write_text(STARVE)
    ended = process(
        *RUN, "--trainer.max_epochs", "3", "--trainer.callbacks+", "starve.Starve", modules=tmp_path
    )
    assert ended.code == 1
    (line,) = ended.errors
    assert "cannot write runs/smoke/checkpoints/next.ckpt (File too large): free disk space" in line
    assert step_of("last") == 3
    assert sorted(each.name for each in Path("runs/smoke/checkpoints").iterdir()) == ["last.ckpt"]
    again = cli(*RUN, "--trainer.max_epochs", "3")
    assert again.code == 0, again.err
    assert same(whole, Path("runs/smoke"))


FAULTY_DISK = """
import subprocess
from pathlib import Path
from shutil import disk_usage

from lightning import Callback


class FaultyDisk(Callback):
    def __init__(self, how: str) -> None:
        self.how = how

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step != 4:
            return
        if self.how == "full":
            Path("runs/ballast").write_bytes(bytes(disk_usage("runs").free))
            return
        for words in (["--bind", "runs", "runs"], ["-o", "remount,bind,ro", "runs"]):
            subprocess.run(["mount", *words], check=True)
"""


@pytest.mark.parametrize(
    ("how", "line"),
    [
        (
            "full",
            "cannot write runs/smoke/evaluation/step-000006.json (No space left on device): free disk space",
        ),
        ("read-only", "Read-only file system: "),
    ],
)
def test_a_disk_that_fails_leaves_the_last_good_checkpoint(cli, process, tmp_path, whole, how, line):
    """A disk of its own, in a namespace of mounts that ends with the process."""
    (tmp_path / "faulty_disk.py").write_text(FAULTY_DISK)
    for name in ("runs", "kept"):
        (tmp_path / name).mkdir()
    words = (*RUN, "--trainer.max_epochs", "3", "--trainer.callbacks+", "faulty_disk.FaultyDisk")
    command = shlex.join([sys.executable, "-m", "dipo_pl", *words, "--trainer.callbacks.how", how])
    script = f"mount -t tmpfs -o size=16m none runs && {command}; code=$?; rm -f runs/ballast; cp -a runs/. kept; exit $code"
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    (said,) = [each for each in ended.stderr.splitlines() if each.startswith("dipo-pl: ")]
    assert line in said
    assert "Traceback" not in ended.stderr
    Path("runs").rmdir()
    Path("kept").rename("runs")
    assert [each.name for each in Path("runs/smoke/checkpoints").iterdir()] == ["last.ckpt"]
    assert step_of("last") == 3
    assert not any(Path("runs").rglob("*.tmp"))
    again = cli(*RUN, "--trainer.max_epochs", "3")
    assert again.code == 0, again.err
    assert same(whole, Path("runs/smoke"))


def test_a_kill_among_shards_leaves_the_last_good_checkpoint(cli, process, tmp_path, whole):
    """A shard of the second checkpoint is written, and the others are not."""
    (tmp_path / "kill.py").write_text(KILL)
    sharded = ("--config", "sharded_checkpoints.yaml", "--name", "smoke", "--trainer.max_epochs", "3")
    ended = process(*RUN, *sharded, "--trainer.callbacks+", "kill.KillMidway", modules=tmp_path)
    assert ended.code == -signal.SIGKILL
    checkpoints = Path("runs/smoke/checkpoints")
    assert sorted(each.name for each in checkpoints.iterdir()) == [".next.ckpt.tmp", "last.ckpt"]
    assert read_checkpoint(checkpoints / "last.ckpt")["global_step"] == 3
    # On one device without parts; its last checkpoint is a file, the one before it a folder.
    again = cli(*RUN, "--trainer.max_epochs", "3")
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


WAIT = """
import time
from pathlib import Path

from lightning import Callback


class Wait(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 4:
            Path("waiting").touch()
            time.sleep(600)
"""


def test_two_at_a_time_do_not_write_into_one_folder(cli, tmp_path, whole):
    (tmp_path / "wait.py").write_text(WAIT)
    words = [*RUN, "--trainer.max_epochs", "3"]
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    first = subprocess.Popen(
        [sys.executable, "-m", "dipo_pl", *words, "--trainer.callbacks+", "wait.Wait"],
        env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not Path("waiting").exists():
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        before = {each: each.read_bytes() for each in Path("runs").rglob("*") if each.is_file()}
        second = cli(*words)
        assert second.code == 2
        assert second.errors == [
            "dipo-pl: error: runs/smoke is used by another process: wait until it has ended, or give another --name"
        ]
        assert before == {each: each.read_bytes() for each in Path("runs").rglob("*") if each.is_file()}
    finally:
        first.kill()
        first.wait()
    assert cli(*words).code == 0
    assert same(whole, Path("runs/smoke"))


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dipo_pl.cli.run import run

    folder = tmp_path_factory.mktemp("two_epochs")
    constant = (
        "--trainer.max_epochs",
        "2",
        "--model.schedule",
        "constant_with_warmup",
        "--model.warmup",
        "0",
    )
    assert run([*RUN, *constant, "--output_dir", str(folder)]) == 0
    return folder / "smoke"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-100]), Path.unlink], ids=["bit", "cut", "gone"]
)  # fmt: skip
def test_the_checkpoint_before_stands_in_for_a_damaged_one(cli, two_epochs, damage):
    constant = ("--model.schedule", "constant_with_warmup", "--model.warmup", "0")
    shutil.copytree(two_epochs, "runs/smoke")
    shutil.copytree(two_epochs, "runs/straight")
    assert (step_of("previous"), step_of("last")) == (3, 6)
    damage(Path("runs/smoke/checkpoints/last.ckpt"))
    ended = cli(*RUN, *constant, "--trainer.max_epochs", "3")
    assert ended.code == 0, ended.err
    assert "resuming from runs/smoke/checkpoints/previous.ckpt" in ended.err
    if damage is not Path.unlink:
        assert "warning: cannot read the checkpoint runs/smoke/checkpoints/last.ckpt (" in ended.err
        assert "): resuming from the previous checkpoint" in ended.err
    assert (step_of("previous"), step_of("last")) == (6, 9)
    assert cli(*RUN, *constant, "--trainer.max_epochs", "3", "--name", "straight").code == 0
    assert same(Path("runs/straight"), Path("runs/smoke"))


def test_a_damaged_one_does_not_become_the_one_before(cli, two_epochs):
    """Or a run killed in its first save after falling back would have nothing left."""
    constant = ("--model.schedule", "constant_with_warmup", "--model.warmup", "0")
    shutil.copytree(two_epochs, "runs/smoke")
    flip(Path("runs/smoke/checkpoints/last.ckpt"))
    seldom = ("--last_checkpoint.every_n_epochs", "3")
    assert cli(*RUN, *constant, *seldom, "--trainer.max_epochs", "3").code == 0
    assert (step_of("previous"), step_of("last")) == (3, 9)


def test_none_that_can_be_read(cli, two_epochs):
    shutil.copytree(two_epochs, "runs/smoke")
    for each in Path("runs/smoke/checkpoints").iterdir():
        flip(each)
    constant = ("--model.schedule", "constant_with_warmup", "--model.warmup", "0")
    ended = cli(*RUN, *constant, "--trainer.max_epochs", "3")
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


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (other_weights, "the weights of model are not those that the checkpoint's training started from"),
        (other_tokenizer, "the tokenizer differs from the one that runs/smoke was trained with ("),
        (
            other_batch,
            "the global batch size must be 16, as runs/smoke was trained with (got 8 with 1 device(s))",
        ),
    ],
)
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
