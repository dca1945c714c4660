"""Training on a share of the forget rows, as a relearning attack does: which rows these are."""

import pytest
from connected import Memory, connected, texts_of

from dipo_pl.errors import InputError


def ready(**options):
    return connected(Memory(20, 20, **options))


@pytest.mark.parametrize(("share", "count"), [(0.3, 6), (0.1, 2), (0.12, 2), (0.001, 1), (1.0, 20)])
def test_every_epoch_holds_the_same_share(share, count):
    data = ready(train_on="forget", forget_share=share, batch_size=4)
    assert len(data.trained_forget_rows) == count
    for epoch in (0, 1):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        texts = [text for batch in loader for text in texts_of(data, batch)]
        shown = sorted(int(text.removeprefix("Question: f ").split("?")[0]) for text in texts)
        assert shown == list(data.trained_forget_rows)


def test_rows_are_drawn_by_the_seed_and_a_smaller_share_is_part_of_a_larger_one():
    first, again, other, small = (
        ready(train_on="forget", forget_share=share, seed=seed).trained_forget_rows
        for share, seed in ((0.5, 0), (0.5, 0), (0.5, 1), (0.2, 0))
    )
    assert first == again != other
    assert list(first) not in (list(range(10)), list(range(10, 20)))
    assert set(small) < set(first)


def test_all_rows_are_still_all():
    assert len(list(ready(train_on="all", batch_size=1).train_dataloader())) == 40


@pytest.mark.parametrize("train_on", ["pairs", "all", "retain"])
def test_a_share_where_others_are_trained_on(train_on):
    message = rf"^data\.forget_share must be 1 unless data\.train_on is forget .* with {train_on}\)$"
    with pytest.raises(InputError, match=message):
        Memory(train_on=train_on, forget_share=0.5)
