"""Stored states are built by any number of ranks and runs, killed wherever they are, and by the command line."""

import os
import resource
import signal
import sys
from pathlib import Path

import forked
import pytest
import torch
import torch.distributed as dist
from reference_problems import FULL, SHARD, attached, contents, count_forwards, data, frozen_copy, model
from torch.testing import assert_close

from dipo_pl.errors import InputError, TrainingError, WriteError
from dipo_pl.models.hidden_states import answer_states
from dipo_pl.references import stored_states

BATCHES = 6


def ended(folder, *runs):
    """The exit codes of functions that run at a time, in a process each."""
    children = [forked.fork(run, folder / f"{place}.log") for place, run in enumerate(runs)]
    return [forked.wait(each, 60) for each in children]


def killed_after(number):
    """A function that is killed when it is called for the n-th time, counted from 0."""
    left = [number]

    def step():
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    return step


def kill_at_forward(number):
    step = killed_after(number)
    stored_states.answer_states = lambda *arguments: (step(), answer_states(*arguments))[1]


def kill_at_file_access(folder, number):
    """Die just before the nth time that a folder is made, or a file opened, renamed or removed in this folder."""
    step, events = killed_after(number), ("open", "os.mkdir", "os.rename", "os.remove")
    sys.addaudithook(lambda event, given: step() if event in events and str(folder) in str(given) else None)


def killed_build(folder, number):
    assert ended(folder.parent, lambda: (kill_at_forward(number), attached(folder))) == [-signal.SIGKILL]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    attached(folder)
    assert len(data(folder)) == BATCHES + 1
    return data(folder)


@pytest.mark.parametrize("number", range(BATCHES))
def test_a_build_that_was_killed_goes_on_at_that_batch(folder, uninterrupted, number):
    killed_build(folder, number)
    calls = count_forwards(policy := model())
    states = attached(folder, policy).states(FULL)[None]
    assert len(calls) == BATCHES - number
    assert data(folder) == uninterrupted
    assert_close(states, frozen_copy(policy).states(FULL)[None], atol=1e-5, rtol=1e-5)


def test_killed_at_every_access_to_a_file(tmp_path):
    """Two batches are enough: what is done for one more is the same."""
    two = {"batch_tokens": 150}
    attached(tmp_path / "whole", arguments=two)
    number, code = -1, None
    while code != 0:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()

        def build(folder=folder, number=number):
            kill_at_file_access(folder, number)
            attached(folder, arguments=two)

        (code,) = ended(tmp_path, build)
        assert code in (0, -signal.SIGKILL)
        attached(folder, arguments=two)
        assert data(folder) == data(tmp_path / "whole"), number
    assert number > 15


def test_killed_and_another_size_of_batches_goes_on_from_what_there_is(folder):
    killed_build(folder, 4)
    before = contents(folder / "reference")
    assert len(before) == 4
    calls = count_forwards(policy := model())
    states = attached(folder, policy, arguments={"batch_tokens": 1000}).states(FULL)[None]
    assert len(calls) == 1
    assert before.items() <= contents(folder / "reference").items()
    assert_close(states, frozen_copy(policy).states(FULL)[None], atol=1e-5, rtol=1e-5)


def test_an_error_of_the_file_system_is_told_and_can_be_gone_on_from(tmp_path, folder, uninterrupted):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(
            WriteError, match=rf"^cannot write {folder}/reference/{SHARD} \(File too large\): "
        ):
            attached(folder)

    assert ended(tmp_path, limited) == [0]
    attached(folder)
    assert data(folder) == uninterrupted


# Several processes.


def ranks_attach(folder, world_size, sharded=False, killed=None):
    """The exit codes of ranks, of which `killed` dies at its second batch; each writes what it has read."""

    def run(rank):
        with forked.gloo(folder.parent, rank, world_size):
            if rank == killed:
                kill_at_forward(1)
            stored_states.is_sharded = lambda _: sharded
            calls = count_forwards(policy := model())
            reference = attached(folder, policy, rank=rank, world_size=world_size, barrier=dist.barrier)
            found = len(calls), reference.states(FULL)[None], reference.head.weight
            torch.save(found, folder.parent / f"{rank}.pt")
            dist.barrier()

    return ended(folder.parent, *(lambda rank=rank: run(rank) for rank in range(world_size)))


@pytest.mark.parametrize(("sharded", "forwards"), [(False, [2, 2, 1, 1]), (True, [2, 2, 2, 2])])
def test_each_rank_builds_its_share_and_reads_all(tmp_path, folder, uninterrupted, sharded, forwards):
    """Of a sharded model all ranks must make the same number of forward passes."""
    assert ranks_attach(folder, 4, sharded) == [0] * 4
    assert data(folder) == uninterrupted
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    assert [calls for calls, *_ in results] == forwards
    alone = attached(folder)
    for _, states, head in results:
        assert torch.equal(states, alone.states(FULL)[None])
        assert torch.equal(head, alone.head.weight)


def test_a_build_that_was_killed_goes_on_with_another_number_of_ranks(folder, uninterrupted):
    killed_build(folder, 1)
    other, killed = ranks_attach(folder, 2, killed=1)
    assert (killed, other) == (-signal.SIGKILL, 70)
    calls = count_forwards(policy := model())
    attached(folder, policy)
    # One process had written batch 0, then rank 0 batches 1, 3 and 5, and rank 1 batch 2.
    assert len(calls) == 1
    assert data(folder) == uninterrupted


def test_runs_that_begin_together_do_not_disturb_each_other(tmp_path, folder, uninterrupted):
    assert ended(tmp_path, *[lambda: attached(folder)] * 3) == [0, 0, 0]
    assert data(folder) == uninterrupted


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_do_not_share_the_folder_are_told(tmp_path, rank):
    message = rf"rank {rank} does not find .*: set model\.reference\.path to a folder that all ranks share"
    with pytest.raises(InputError, match=message):
        attached(tmp_path, rank=rank, world_size=2)
    assert not (tmp_path / "reference/manifest.json").exists()


# On the command line.

RUN = (
    "fit", "--config", "smoke.yaml", "--forget_quality.generate_every", "0", "--data.evaluation_rows", "2",
    "--model.schedule", "constant_with_warmup", "--model.warmup", "0",
)  # fmt: skip
STORED = (*RUN, "--config", "stored_states.yaml")
IN_STORE = (*STORED, "--model.reference.path", "store")


def logged(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(f"runs/{run}").Reload()
    names = ("loss", "forget_loss", "retain_loss")
    return {name: [each.value for each in events.Scalars(f"train/{name}")] for name in names}


def test_training_is_that_with_a_frozen_copy_also_when_resumed(cli):
    """It is, to float32 rounding of states, which the first steps of AdamW enlarge."""
    assert cli(*RUN, "--model.reference", "FrozenCopy", "--name", "copied").code == 0
    begun = cli(*IN_STORE, "--name", "stored", "--trainer.max_epochs", "1")
    assert begun.code == 0, begun.err
    assert "reference states: 100%" in begun.err
    store = contents("store")
    resumed = cli(*IN_STORE, "--name", "stored")
    assert resumed.code == 0, resumed.err
    assert "the reference states are read from store" in resumed.err
    assert contents("store") == store
    copied, stored = logged("copied"), logged("stored")
    assert len(copied["loss"]) == 6
    assert copied["loss"][-1] < copied["loss"][0] - 1e-3
    assert_close(stored, copied, atol=1e-5, rtol=0)


def test_other_runs_are_refused_by_name_in_one_line(cli):
    assert cli(*IN_STORE, "--name", "first", "--trainer.max_steps", "1").code == 0
    store, runs = contents("store"), contents("runs")
    for options, named in [
        ("--data.prompt Llama2Chat", "forget sequences; retain sequences"),
        ("--data.max_length 60 --data.too_long truncate", "retain sequences"),
        ("--data.authors 3 --model.policy.seed 1", "model; tokenizer; forget rows; retain rows; forget seq"),
        ("--trainer.precision bf16-mixed", "precision: torch.float32 there, torch.bfloat16 autocast here"),
    ]:
        ended = cli(*IN_STORE, "--name", "second", *options.split())
        assert ended.code == 2
        (error,) = ended.errors
        assert f"store holds the states of another reference (different: {named}" in error
        assert contents("store") == store
        assert contents("runs") == runs


def test_a_start_that_fails_leaves_what_it_has_computed(cli, monkeypatch):
    def failing(*arguments):
        if len(list(Path("runs/smoke-stored_states/reference").glob("*"))) == 3:
            raise TrainingError("no memory")
        return answer_states(*arguments)

    stored = (*STORED, "--model.reference.batch_tokens", "400", "--trainer.max_steps", "1")
    with monkeypatch.context() as patched:
        patched.setattr(stored_states, "answer_states", failing)
        assert "no memory" in cli(*stored).errors[0]
    half = contents("runs/smoke-stored_states")
    assert len([path for path in half if path.suffix == ".safetensors"]) == 3
    ended = cli(*stored)
    assert ended.code == 0, ended.err
    whole = contents("runs/smoke-stored_states")
    assert {path: each for path, each in half.items() if each[0]}.items() < whole.items()
    assert Path("reference/manifest.json") in whole
