"""The engine under DDP and FSDP2 in two real processes: the gradients of one."""

import sys
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parent))
import engine_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two gloo processes got, by case."""
    folder = tmp_path_factory.mktemp("engine")
    processes = mp.spawn(engine_ranks.run, args=(str(folder),), nprocs=engine_ranks.RANKS, join=False)
    deadline = time.monotonic() + 240
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < deadline, "a process hangs"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(engine_ranks.result(folder, rank)) for rank in range(engine_ranks.RANKS)]


@pytest.mark.parametrize("case", engine_ranks.CASES)
def test_two_processes_have_the_gradients_of_one(ranks, case):
    """Each has half of the rows; DiPO's mean over sequences is the mean of the ranks' means. Float32 rounding."""
    _, tied = engine_ranks.CASES[case]
    expected = engine_ranks.single(tied)
    for found in ranks:
        assert found[case].keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(
                found[case][name], gradient, rtol=0, atol=2e-6 * float(gradient.abs().max())
            )
