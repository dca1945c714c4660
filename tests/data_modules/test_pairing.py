"""Pairs and batches as pure functions of seed, epoch and row: the same from any start, on any ranks."""

import random
from collections import Counter

import pytest
import torch

from dipo_pl.data_modules.training_batches import ResumableSampler, forget_retain_pairs, permutation

# Permutations.


def test_a_permutation_is_the_same_everywhere():
    """Written out: another machine, Python or release must deal the same cards."""
    assert permutation(0, "forget", 0, 6) == [0, 3, 4, 2, 1, 5]
    assert permutation(7, "retain", 3, 6) == [0, 5, 2, 3, 1, 4]
    keys = [(seed, stream, cycle) for seed in (0, 1) for stream in ("forget", "retain") for cycle in (0, 1)]
    orders = {tuple(permutation(*key, 50)) for key in keys}
    assert len(orders) == 8
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_a_permutation_neither_reads_nor_moves_the_global_generators():
    found = []
    for seed in (1, 2):
        random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), torch.get_rng_state()
        found.append(permutation(0, "forget", 0, 50))
        assert random.getstate() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
    assert found[0] == found[1]


# Pairs.


@pytest.mark.parametrize(("forget", "retain"), [(1, 1), (4, 4), (4, 11), (5, 2), (7, 3), (3, 1), (10, 25)])
def test_pairs(forget, retain):
    """An epoch passes once over the forget set; retain rows are dealt without replacement across epochs."""
    dealt = []
    for epoch in range(9):
        partners = dict(forget_retain_pairs(3, epoch, forget, retain))
        assert sorted(partners) == list(range(forget))
        dealt += [partners[row] for row in range(forget)]
    for start in range(0, len(dealt), retain):
        pack = dealt[start : start + retain]
        assert len(set(pack)) == len(pack)
    counts = Counter(dict.fromkeys(range(retain), 0) | Counter(dealt))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_each_pack_epoch_and_seed_has_its_own_order():
    epochs = [forget_retain_pairs(0, epoch, 20, 20) for epoch in range(6)]
    assert len({tuple(row for row, _ in epoch) for epoch in epochs}) == 6
    assert len({tuple(dict(epoch)[row] for row in range(20)) for epoch in epochs}) == 6
    assert forget_retain_pairs(1, 0, 20, 20) != epochs[0]
    # Whatever was asked before.
    assert forget_retain_pairs(0, 3, 20, 20) == epochs[3]


def test_pairs_written_out():
    """Packs of three cards: 2 0 1, then 0 1 2, then 1 0 2. Epoch 0 takes 2 0 1 0, epoch 1 takes 1 2 1 0."""
    assert [permutation(0, "retain", cycle, 3) for cycle in range(3)] == [[2, 0, 1], [0, 1, 2], [1, 0, 2]]
    assert forget_retain_pairs(0, 0, 4, 3) == [(0, 2), (2, 1), (3, 0), (1, 0)]
    assert forget_retain_pairs(0, 1, 4, 3) == [(2, 1), (3, 0), (1, 2), (0, 1)]


# Batches.

SAMPLERS = [
    (size, batch_size, world)
    for world in (1, 2, 3)
    for size, batch_size in [(1, 1), (1, 4), (2, 1), (7, 2), (12, 2), (13, 4), (5, 8)]
]


def items_of(size):
    """The epoch's items, told apart by epoch: 100, 101, ... in epoch 1."""
    return lambda epoch: [100 * epoch + index for index in range(size)]


def ranks(size, batch_size, world):
    return [ResumableSampler(items_of(size), batch_size, rank, world) for rank in range(world)]


@pytest.mark.parametrize(("size", "batch_size", "world"), SAMPLERS)
def test_ranks_share_out_consecutive_items(size, batch_size, world):
    samplers = ranks(size, batch_size, world)
    per_rank = [list(sampler) for sampler in samplers]
    batches = -(-size // (batch_size * world))
    assert [len(each) for each in samplers] == [len(each) for each in per_rank] == [batches] * world
    seen = []
    for number, shares in enumerate(zip(*per_rank, strict=True)):
        # No rank is left without work: one that has none repeats the first item, which then counts nothing.
        works = [sampler.weight(number) > 0 for sampler in samplers]
        own = [share for share, some in zip(shares, works, strict=True) if some]
        assert all(share == [0] for share, some in zip(shares, works, strict=True) if not some)
        assert max(map(len, own)) - min(map(len, own)) <= 1
        assert max(map(len, own)) <= batch_size
        seen += [item for share in own for item in share]
    assert seen == list(range(size))


@pytest.mark.parametrize(("size", "batch_size", "world"), SAMPLERS)
def test_from_any_batch_on_as_if_never_stopped(size, batch_size, world):
    for rank, whole in enumerate(ranks(size, batch_size, world)):
        for epoch in (0, 3):
            whole.set_epoch(epoch)
            expected = list(whole)
            assert list(whole) == expected
            for done in range(len(whole)):
                resumed = ResumableSampler(items_of(size), batch_size, rank, world)
                resumed.resume(epoch, done)
                assert list(resumed) == expected[done:]
                assert len(resumed) == len(whole)


def test_literal_batches():
    first, second = ranks(size=7, batch_size=2, world=2)
    assert list(first) == [[0, 1], [4]]
    assert list(second) == [[2, 3], [5, 6]]
    assert [first.weight(each) for each in range(2)] == [1, 2 / 3]


@pytest.mark.parametrize(("done", "rest"), [(2, [[104, 105]]), (3, None), (4, None)])
def test_the_epoch_resumed_in_keeps_its_place_and_the_next_begins_at_its_start(done, rest):
    """Resumed at the end of an epoch it begins the next, which Lightning may ask for before it tells the epoch."""
    sampler = ResumableSampler(items_of(6), 2)
    sampler.resume(1, done)
    if rest is None:
        assert next(iter(sampler)) == [200, 201]
    else:
        sampler.set_epoch(1)
        assert list(sampler) == rest
    sampler.set_epoch(2)
    assert list(sampler) == [[200, 201], [202, 203], [204, 205]]


# Steps of several batches.


@pytest.mark.parametrize(("size", "batch_size", "world"), SAMPLERS)
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_weights_make_the_trainers_mean_that_over_a_steps_items(size, batch_size, world, accumulation):
    """The trainer divides by ranks and accumulation, also where an epoch ends within a step."""
    samplers = ranks(size, batch_size, world)
    batches = [list(sampler) for sampler in samplers]
    assert {len(each) for each in batches} == {len(each) for each in samplers} == {len(samplers[0])}
    step = batch_size * world * accumulation
    for first in range(0, len(batches[0]), accumulation):
        items = range(size)[first // accumulation * step :][:step]
        total = 0.0
        for rank, sampler in enumerate(samplers):
            for number in range(first, min(first + accumulation, len(sampler))):
                mean = sum(item**2 for item in batches[rank][number]) / len(batches[rank][number])
                total += sampler.weight(number, accumulation) * mean
        assert total / world / accumulation == pytest.approx(sum(each**2 for each in items) / len(items))


def test_literal_batches_and_weights():
    first, second = ranks(size=7, batch_size=1, world=2)
    assert list(first) == [[0], [2], [4], [0]]
    assert list(second) == [[1], [3], [5], [6]]
    # The second step has three items: four places, of which one counts nothing.
    assert [first.weight(each, 2) for each in range(4)] == [1, 1, 4 / 3, 0]
    assert [second.weight(each, 2) for each in range(4)] == [1, 1, 4 / 3, 4 / 3]


def test_a_step_of_an_epoch_that_is_cut_short_counts_its_own_rows():
    (sampler,) = ranks(size=40, batch_size=2, world=1)
    assert [sampler.weight(each, 4, batches=5) for each in range(5)] == [1, 1, 1, 1, 4]
    assert [sampler.weight(each, 4) for each in range(20)] == [1] * 20
