"""Ranks with unequal work generate from a model in shards what each would alone, and none waits for ever."""

import sys
import time
from pathlib import Path

import torch
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parent))
import generating_ranks


def test_ranks_generate_what_one_process_does(tmp_path):
    processes = mp.spawn(generating_ranks.run, args=(str(tmp_path),), nprocs=2, join=False)
    deadline = time.monotonic() + 120
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < deadline, "a rank waits for the other"
    finally:
        for process in processes.processes:
            process.kill()
    expected = [generating_ranks.texts(generating_ranks.model(), each) for each in generating_ranks.PROMPTS]
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == expected
    lengths = {len(text.split()) for each in expected for text in each}
    # Some rows have ended and others not.
    assert len(lengths) > 1
