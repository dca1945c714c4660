"""Files of a run are whole or absent, and a second try at a step takes the first one's place."""

import errno
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

import pytest

from dipo_pl.errors import InputError, WriteError
from dipo_pl.metrics.result import EvaluationResult
from dipo_pl.storage.checkpoints import replace_last
from dipo_pl.storage.files import locked, replacing, replacing_folder, write_text
from dipo_pl.storage.run_folder import RunFolder


def test_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_a_step_measured_again_replaces_itself_and_what_came_after(tmp_path):
    run = RunFolder(tmp_path)
    for step, value in ((0, 1.0), (5, 2.0), (10, 3.0), (5, 4.0)):
        EvaluationResult("dipo_pl", {"value": value}, {}, epoch=step / 10, step=step).save(run)
    assert [(each["step"], each["value"]) for each in run.read_metrics()] == [(0, 1.0), (5, 4.0)]
    assert sorted(path.name for path in run.evaluation.iterdir()) == ["step-000000.json", "step-000005.json"]
    assert EvaluationResult.read(run.evaluation_file(5)).metrics == {"value": 4.0}


def test_the_evaluation_that_speaks_for_a_run(tmp_path):
    run = RunFolder(tmp_path)
    assert (run.final_step, run.lack) == (None, "no evaluation (metrics.jsonl is missing or empty)")
    for step in (0, 5, 10):
        EvaluationResult("dipo_pl", {}, {}, step=step).save(run)
    assert run.final_step == 10
    run.add_to_manifest(exported_step=5)
    assert run.final_step == 5
    run.add_to_manifest(exported_step=7)  # weights that were never measured
    assert (run.final_step, run.final_metrics) == (None, {})
    assert run.lack == "no evaluation of step 7, whose weights it exported"
    assert run.read_manifest() == {"exported_step": 7}


@pytest.mark.parametrize("text", [
    "", "{", "[]", '{"sets": {}}', '{"sets": {"forget": {"nought": 1}}}', "\\x00", "[" * 100_000,
    '{"convention": "dipo_pl", "metrics": {"x": NaN}, "sets": {}}',
    '{"convention": "dipo_pl", "metrics": [], "sets": {}}',
    '{"convention": "dipo_pl", "metrics": {}, "sets": {"forget": {"metrics": {}, "rows": [{"nll": []}]}}}',
    '{"convention": "dipo_pl", "metrics": {}, "sets": {"forget": {"metrics": {}, "rows": [{"nll": ["1"]}]}}}',
    '{"convention": "dipo_pl", "metrics": {}, "sets": {"forget": {"metrics": {}, "rows": [{"min_k": true}]}}}',
], ids=range(12))  # fmt: skip
def test_what_is_no_evaluation(tmp_path, text):
    path = tmp_path / "step-000000.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))} is not an evaluation"):
        EvaluationResult.read(path)
    with pytest.raises(
        InputError,
        match=r"json-gone does not exist: give an evaluation file or a",
    ):
        EvaluationResult.read(Path(f"{path}-gone"))


def test_a_manifest_that_is_missing_or_broken_reads_as_none(tmp_path):
    run = RunFolder(tmp_path)
    assert run.read_manifest() == {}
    run.manifest.write_text("{")
    assert run.read_manifest() == {}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_names_the_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with files_of_at_most(10), pytest.raises(WriteError, match=rf"^cannot write {path} \(File too large\): "):
        write_text(path, "new" * 10)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "hf"

    def write(text):
        with replacing_folder(path) as temporary:
            (temporary / "weights").write_text(text)

    write("old")
    with files_of_at_most(10), pytest.raises(WriteError, match=rf"^cannot write {path} \("):
        write("new" * 10)
    assert [(path / "weights").read_text(), list(tmp_path.iterdir())] == ["old", [path]]
    write("new")
    assert [(path / "weights").read_text(), list(tmp_path.iterdir())] == ["new", [path]]


def test_a_folder_that_a_kill_has_left_aside_is_put_back(tmp_path):
    path, aside = tmp_path / "hf", tmp_path / ".hf.old"

    def write(text):
        with replacing_folder(path) as temporary:
            (temporary / "weights").write_text(text)

    write("old")
    path.rename(aside)
    with files_of_at_most(10), pytest.raises(WriteError):
        write("new" * 10)
    assert [(path / "weights").read_text(), list(tmp_path.iterdir())] == ["old", [path]]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "hf"
    with replacing_folder(path) as temporary:
        (temporary / "weights").write_text("old")
    rename = Path.rename

    def fails(source, target):
        if source.name == ".hf.tmp":
            raise OSError(errno.EIO, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(WriteError), replacing_folder(path) as temporary:
        (temporary / "weights").write_text("new")
    assert [(path / "weights").read_text(), list(tmp_path.iterdir())] == ["old", [path]]


def test_all_is_on_disk_before_it_takes_its_place_and_its_place_after(tmp_path, monkeypatch):
    done = []
    fsync, replace, rename = os.fsync, os.replace, Path.rename

    def synced(descriptor):
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *each: (done.append(("rename", each[1].name)), replace(*each)))
    monkeypatch.setattr(
        Path, "rename", lambda *each: (done.append(("rename", each[1].name)), rename(*each))[1]
    )
    write_text(tmp_path / "file", "text")
    assert done == [("sync", f".file.{os.getpid()}.tmp"), ("rename", "file"), ("sync", tmp_path.name)]
    done.clear()
    with replacing_folder(tmp_path / "hf") as temporary:
        (temporary / "weights").write_text("text")
    assert done == [("sync", "weights"), ("sync", ".hf.tmp"), ("rename", "hf"), ("sync", tmp_path.name)]


def test_what_a_kill_has_left_makes_room(tmp_path):
    (tmp_path / ".last.ckpt.123.tmp").write_text("half")
    write_text(tmp_path / "last.ckpt", "whole")
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


def checkpoint_at(path, text, as_folder):
    if as_folder:
        path.mkdir()
    (path / "shard" if as_folder else path).write_text(text)


def text_of(path):
    return (path / "shard" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kinds", list(product([True, False], repeat=3)))
@pytest.mark.parametrize("previous", [True, False])
def test_checkpoints_take_turns_and_one_is_whole_at_every_moment(
    tmp_path, monkeypatch, kinds, keep, previous
):
    """Files and folders in any order; killed before the n-th change of the folder, and gone on with."""
    run = RunFolder(tmp_path)
    replace, rmtree = os.replace, shutil.rmtree

    class Killed(BaseException):
        pass

    for left in range(7):
        rmtree(run.checkpoints, ignore_errors=True)
        run.checkpoints.mkdir()
        if previous:
            checkpoint_at(run.previous_checkpoint, "1", kinds[0])
        checkpoint_at(run.last_checkpoint, "2", kinds[1])
        checkpoint_at(run.checkpoints / "next.ckpt", "3", kinds[2])
        lives = iter(range(left))

        def counted(change, lives):
            def changed(*paths, **more):
                if next(lives, None) is None:
                    raise Killed
                change(*paths, **more)

            return changed

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", counted(replace, lives))
            patched.setattr(shutil, "rmtree", counted(rmtree, lives))
            with suppress(Killed):
                replace_last(run, run.checkpoints / "next.ckpt", keep)
        # Where keep is false, last.ckpt may be the damaged one that previous.ckpt has stood in for.
        good = ("2", "3") if keep or not previous else ("1", "3")
        assert any(text_of(each) in good for each in run.to_resume_from)
        if (run.checkpoints / "next.ckpt").exists():
            replace_last(run, run.checkpoints / "next.ckpt", keep)
        assert text_of(run.last_checkpoint) == "3"
    kept = {"2"} if keep else {"1"} if previous else set()
    assert {text_of(each) for each in run.to_resume_from[1:]} == kept
    assert {each.name for each in run.checkpoints.iterdir()} <= {"last.ckpt", "previous.ckpt"}


def test_a_failed_write_is_told_by_one_process_to_another():
    error = WriteError(Path("last.ckpt"), OSError(28, "No space left on device"))
    told = pickle.loads(pickle.dumps(error))
    assert (type(told), str(told), told.strerror) == (WriteError, str(error), error.strerror)


def test_what_another_process_is_writing_is_not_taken_for_left(tmp_path):
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    for number in (os.getppid(), dead):
        (tmp_path / f".file.{number}.tmp").touch()
    write_text(tmp_path / "file", "text")
    assert {each.name for each in tmp_path.iterdir()} == {"file", f".file.{os.getppid()}.tmp"}


def test_a_lock_leaves_no_folder_where_the_input_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "a" / "run"
    with pytest.raises(InputError, match="no good"), locked(folder):
        raise InputError("no good")
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "file").touch()
    with pytest.raises(InputError, match="no good"), locked(folder):
        raise InputError("no good")
    assert {each.name for each in folder.iterdir()} == {".lock", "file"}
    (folder / "file").unlink()
    with locked(folder):
        # Who comes second may have seen no folder when it began.
        monkeypatch.setattr(type(folder), "exists", lambda path: False)
        with pytest.raises(InputError, match="is used by another process"), locked(folder):
            pass
        monkeypatch.undo()
        assert (folder / ".lock").exists()


def test_a_child_that_outlives_a_killed_process_does_not_keep_its_lock(tmp_path):
    script = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from dipo_pl.storage.files import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    if os.fork() == 0:\n"
        "        Path(sys.argv[1], 'child').write_text(str(os.getpid()))\n"
        "        time.sleep(60)\n"
        "    while not Path(sys.argv[1], 'child').exists() or not Path(sys.argv[1], 'child').read_text():\n"
        "        time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = os.pathsep.join(sys.path)
    subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        env=os.environ | {"PYTHONPATH": path},
        timeout=60,
        check=False,
    )
    child = int((tmp_path / "child").read_text())
    os.kill(child, 0)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
