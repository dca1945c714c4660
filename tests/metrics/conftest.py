"""Two gloo ranks, run once for all tests."""

import forked
import gloo_ranks
import pytest
import torch


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """Return what each of two gloo ranks saw."""
    folder = tmp_path_factory.mktemp("gloo")
    forked.run_ranks(lambda rank: gloo_ranks.run(rank, folder), folder)
    return [torch.load(gloo_ranks.result(folder, rank)) for rank in range(2)]
