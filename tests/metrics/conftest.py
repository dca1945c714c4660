"""Puts the folder's helpers on the path, and runs two gloo ranks once for all tests."""

import sys
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parent))
import gloo_ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """Return what each of two gloo ranks saw."""
    folder = tmp_path_factory.mktemp("gloo")
    processes = mp.spawn(gloo_ranks.run, args=(str(folder),), nprocs=2, join=False)
    deadline = time.monotonic() + 90
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < deadline, "a rank hangs"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(gloo_ranks.result(folder, rank)) for rank in range(2)]
