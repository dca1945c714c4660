"""Batches of similar length: nothing lost, little padded, the same from any start and on any ranks."""

import copy
from itertools import pairwise
from types import SimpleNamespace

import pytest
from connected import Module, connected

from dipo_pl.data_modules.alternates import Refusals
from dipo_pl.data_modules.tofu import TOFU
from dipo_pl.data_modules.training_batches import WINDOW, grouped_by_length, permutation

# Items that are their own lengths.


def cut(items, size):
    return [items[start : start + size] for start in range(0, len(items), size)]


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 97, 400])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_every_item_once_and_the_incomplete_batch_last(size, batch_size):
    items = permutation(0, "items", 0, size)
    grouped = grouped_by_length(items, int, batch_size, 0, 0)
    assert sorted(grouped) == list(range(size))
    left = size % batch_size
    assert grouped[size - left :] == items[size - left :]


def test_written_out():
    assert permutation(0, "batches", 0, 3) == [1, 2, 0]
    assert grouped_by_length([5, 1, 4, 0, 3, 2, 6], int, 2, 0, 0) == [2, 3, 4, 5, 0, 1, 6]


def test_each_window_is_sorted_by_itself():
    items = permutation(0, "items", 0, 2 * WINDOW * 3 + 3)
    batches = cut(grouped_by_length(items, int, 3, 0, 0), 3)
    expected = [batch for window in cut(items, WINDOW * 3) for batch in cut(sorted(window), 3)]
    assert batches != expected
    assert sorted(batches) == sorted(expected)


def test_items_of_one_length_keep_their_neighbors():
    items = permutation(0, "items", 0, 40)
    grouped = grouped_by_length(items, lambda _: 7, 4, 0, 0)
    assert grouped != items
    assert sorted(cut(grouped, 4)) == sorted(cut(items, 4))


def test_seed_and_epoch_give_the_batches_their_order():
    items = permutation(0, "items", 0, 200)
    orders = [grouped_by_length(items, int, 4, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert grouped_by_length(items, int, 4, 1, 1) == orders[3]


# TOFU's rows.


@pytest.fixture(scope="module")
def whole(tofu_folder):
    """TOFU's forget10, read and tokenized."""
    return connected(TOFU(tofu_folder, batch_size=8, evaluate=["forget"], evaluation_rows=1), vocabulary=2048)


@pytest.fixture
def tofu(whole):
    """Makes data modules that differ in what is looked at only when batches are made."""

    def make(rank=0, world_size=1, **options):
        data = copy.copy(whole)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
        for name, value in options.items():
            setattr(data, name, value)
        if data.train_on != "pairs":
            data.connect(Module({"train": ("train",)}))
        return data

    return make


def batches(data, epoch=0, done=0):
    loader = data.train_dataloader()
    loader.sampler.resume(epoch, done)
    return list(loader)


def padding(some):
    """Share of the batches' places that hold no token."""
    places = sum(batch.attention_mask.numel() for batch in some)
    return 1 - sum(int(batch.attention_mask.sum()) for batch in some) / places


def meetings(some):
    """Pairs of forget rows that are in one batch."""
    return {
        frozenset((one, other))
        for batch in some
        for one in batch.rows["forget"]
        for other in batch.rows["forget"]
        if one != other
    }


def pairs_of(some):
    return [pair for batch in some for pair in zip(batch.rows["forget"], batch.rows["retain"], strict=True)]


def test_padding_is_halved_and_rows_still_meet_others(tofu):
    grouped, plain = (
        [batches(tofu(group_by_length=on), epoch) for epoch in range(3)] for on in (True, False)
    )
    assert padding(plain[0]) > 0.33
    assert all(padding(each) < 0.20 for each in grouped)
    assert sum(map(padding, grouped)) < 0.55 * sum(map(padding, plain))
    for one, other in pairwise(grouped):
        again = len(meetings(one) & meetings(other)) / len(meetings(one))
        assert again < 0.10  # 0.02 without grouping, 0.11 if the whole epoch were sorted


def test_padding_of_pairs_with_refusals(whole, tofu_folder):
    refusals = Refusals(f"{tofu_folder}/idontknow.txt", per_row=1)
    data = TOFU(tofu_folder, retain_rows=800, alternates=refusals, evaluate=["forget"], evaluation_rows=1)
    connected(data, ("forget", "alternate", "retain"), tokenizer=whole.tokenizer)
    grouped = padding(batches(data))
    data.group_by_length = False
    assert grouped < 0.7 * padding(batches(data))


def test_fine_tuning_has_little_padding_and_other_batches_each_epoch(tofu):
    grouped, plain = (padding(batches(tofu(train_on="all", group_by_length=on))) for on in (True, False))
    assert grouped < 0.25 * plain
    one, other = (batches(tofu(train_on="forget"), epoch) for epoch in range(2))
    assert {frozenset(each.rows["train"]) for each in one} != {
        frozenset(each.rows["train"]) for each in other
    }
    # Long and short batches come in no order.
    widths = [batch.input_ids.shape[1] for batch in one]
    assert sorted(widths) != widths != sorted(widths, reverse=True)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_partition_the_global_batches(tofu, world_size):
    whole = batches(tofu(batch_size=8 * world_size))
    shares = [batches(tofu(rank, world_size)) for rank in range(world_size)]
    assert {len(share) for share in shares} == {len(whole)}
    for batch, *parts in list(zip(whole, *shares, strict=True))[:-1]:
        assert [pair for part in parts for pair in pairs_of([part])] == pairs_of([batch])
    assert [pair for step in zip(*shares, strict=True) for pair in pairs_of(step)] == pairs_of(whole)
