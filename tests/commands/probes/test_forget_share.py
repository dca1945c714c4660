"""Training on a share of the forget rows: which rows these are."""

import pytest
from connected import connected

from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import EvaluationSet, RowSets
from dipo_pl.rows import Row

ROWS = {name: [Row((("user", f"{name} {k}?"),), f"{name}{k}.") for k in range(20)] for name in ("f", "r")}


class Memory(ForgetRetain):
    def read(self):
        return RowSets(ROWS["f"], ROWS["r"], [EvaluationSet("forget", ROWS["f"])])


def ready(**options):
    return connected(Memory(**options))


def shown(data, epoch):
    """Places of the rows that an epoch's batches hold, read from their texts."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    texts = [
        data.tokenizer.decode(ids[mask], skip_special_tokens=True)
        for batch in loader
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    return [int(text.removeprefix("Question: f ").split("?")[0]) for text in texts]


@pytest.mark.parametrize(("share", "count"), [(0.3, 6), (0.1, 2), (0.12, 2), (0.001, 1), (1.0, 20)])
def test_every_epoch_holds_the_same_share(share, count):
    data = ready(train_on="forget", forget_share=share, batch_size=4)
    assert len(data.trained_forget_rows) == count
    for epoch in (0, 1):
        assert sorted(shown(data, epoch)) == list(data.trained_forget_rows)


def test_rows_are_drawn_by_the_seed():
    first, again, other = (
        ready(train_on="forget", forget_share=0.5, seed=seed).trained_forget_rows for seed in (0, 0, 1)
    )
    assert first == again != other
    assert list(first) not in (list(range(10)), list(range(10, 20)))


def test_a_smaller_share_is_part_of_a_larger_one():
    small, large = (
        set(ready(train_on="forget", forget_share=share).trained_forget_rows) for share in (0.2, 0.6)
    )
    assert small < large


def test_all_rows_are_still_all():
    assert len(list(ready(train_on="all", batch_size=1).train_dataloader())) == 40


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_a_share_that_is_none(share):
    with pytest.raises(InputError, match=r"^data\.forget_share must be a share in \(0, 1\] \(got "):
        Memory(train_on="forget", forget_share=share)


@pytest.mark.parametrize("train_on", ["pairs", "all", "retain"])
def test_a_share_where_others_are_trained_on(train_on):
    with pytest.raises(
        InputError,
        match=rf"^data\.forget_share must be 1 unless data\.train_on is forget .* with {train_on}\)$",
    ):
        Memory(train_on=train_on, forget_share=0.5)
