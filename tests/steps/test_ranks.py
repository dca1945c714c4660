"""Gradients in two processes: means over ranks, and inner products, moves and copies of shards."""

import forked
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from dipo_pl.steps.gradient import Gradient

# Rows that two ranks cannot share alike, and fewer rows than ranks.
SHAPES = [(5, 3), (1, 4), (6,)]


def tensors(seed):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw) for shape in SHAPES]


def gradient(weights, parts):
    made = Gradient(weights)
    made.parts = parts
    return made


def means(rank):
    """One weight that both ranks reach, one that only the second one does, and one that none does."""
    weights = [nn.Parameter(each) for each in tensors(0)]
    one, two, _ = tensors(1 + rank)
    return gradient(weights, [one, two if rank else None, None]).average(2).parts


def shards(rank):
    mesh = init_device_mesh("cpu", (2,))
    weights, one, two = (
        [distribute_tensor(each, mesh, [Shard(0)]) for each in tensors(seed)] for seed in range(3)
    )
    weights = [nn.Parameter(each) for each in weights]
    first, second = gradient(weights, one), gradient(weights, [*two[:2], None])
    found = {"dot": first.dot(second), "norm": first.dot(first)}
    before = first.move_weights(torch.tensor(0.5))
    found["moved"] = [each.detach().full_tensor() for each in weights]
    first.restore(before)
    found["back"] = [each.detach().full_tensor() for each in weights]
    found["sum"] = [each.full_tensor() for each in second.add(first, torch.tensor(2.0)).average(2).parts]
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")

    def run(rank):
        with forked.gloo(folder, rank):
            torch.save({"means": means(rank), **shards(rank)}, folder / f"{rank}.pt")

    forked.run_ranks(run, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_means_are_of_all_ranks_where_any_reaches_the_weight(ranks):
    (one, _, _), (other, second, _) = tensors(1), tensors(2)
    for found in ranks:
        both, only_second, neither = found["means"]
        torch.testing.assert_close(both, (one + other) / 2)
        torch.testing.assert_close(only_second, second / 2)
        assert neither is None


def test_shards_are_one_gradient(ranks):
    weights, one, two = (tensors(seed) for seed in range(3))
    for found in ranks:
        assert float(found["dot"]) == pytest.approx(
            sum(float((a.double() * b).sum()) for a, b in zip(one[:2], two[:2], strict=True)), rel=1e-5
        )
        assert float(found["norm"]) == pytest.approx(
            sum(float(a.double().square().sum()) for a in one), rel=1e-5
        )
        for place, weight in enumerate(weights):
            torch.testing.assert_close(found["moved"][place], weight + 0.5 * one[place])
            assert torch.equal(found["back"][place], weight)
            own = two[place] if place < 2 else 0
            torch.testing.assert_close(found["sum"][place], own + 2 * one[place])
