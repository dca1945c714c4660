"""Padding, positions and sections of a batch, as literal tensors."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dipo_pl.batch import Batch, Encoded, EvaluationBatch, collate

# Token id 0 is real, and 2 stands for a pad id that is EOS: neither may be taken for padding.
FORGET = [Encoded((5, 0, 7, 8, 2), 3), Encoded((5, 2, 2), 1)]
RETAIN = [Encoded((0, 0, 0, 2), 2)]


@pytest.fixture
def batch():
    return collate({"forget": FORGET, "retain": RETAIN}, [4, 6, 9])


def same(one, other):
    exact = {"rtol": 0, "atol": 0}
    for field in fields(one):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(ours, Tensor):
            assert_close(ours, theirs, **exact)
        else:
            assert ours == theirs


def test_every_field(batch):
    expected = Batch(
        input_ids=torch.tensor([[5, 0, 7, 8, 2], [5, 2, 2, 0, 0], [0, 0, 0, 2, 0]]),
        attention_mask=torch.tensor(
            [[True] * 5, [True, True, True, False, False], [True, True, True, True, False]]
        ),
        positions=torch.tensor([2, 3, 5, 6, 11, 12]),
        targets=torch.tensor([8, 2, 2, 2, 0, 2]),
        lengths=(2, 2, 2),
        sections={"forget": 2, "retain": 1},
        rows=(4, 6, 9),
    )
    same(batch, expected)


def test_each_position_is_followed_by_its_target(batch):
    ids = batch.input_ids.flatten()
    assert torch.equal(ids[batch.positions + 1], batch.targets)
    # Both stand in the same row, and both are tokens rather than padding.
    width = batch.input_ids.shape[1]
    assert torch.equal(batch.positions // width, (batch.positions + 1) // width)
    mask = batch.attention_mask.flatten()
    assert mask[batch.positions].all()
    assert mask[batch.positions + 1].all()


def test_section_slices():
    sections = {"forget": [Encoded((1, 2, 3, 4), 1)], "none": [], "retain": [Encoded((1, 2, 3), 1)] * 2}
    batch = collate(sections, [0, 0, 1])
    assert batch.lengths == (3, 2, 2)
    assert batch.section_slices() == {
        "forget": (slice(0, 1), slice(0, 3)),
        "none": (slice(1, 1), slice(3, 3)),
        "retain": (slice(1, 3), slice(3, 7)),
    }


def test_sections_cover_all_rows_and_tokens_in_order(batch):
    slices = batch.section_slices()
    assert batch.targets[slices["forget"][1]].tolist() == [8, 2, 2, 2]
    assert batch.targets[slices["retain"][1]].tolist() == [0, 2]
    assert batch.rows[slices["forget"][0]] == (4, 6)
    assert batch.rows[slices["retain"][0]] == (9,)


def test_padding_changes_nothing_but_the_width():
    alone = collate({"forget": RETAIN}, [0])
    beside = collate({"forget": RETAIN + FORGET[:1]}, [0, 1])
    assert alone.input_ids.shape == (1, 4)
    assert beside.input_ids.shape == (2, 5)
    assert torch.equal(alone.positions, beside.positions[:2])
    assert torch.equal(alone.targets, beside.targets[:2])


def test_answer_length():
    assert Encoded((5, 0, 7, 8, 2), 3).answer_length == 2


def test_to_moves_every_tensor_and_keeps_the_rest(batch):
    moved = batch.to(torch.device("meta"))
    for field in fields(batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(before, Tensor):
            assert before.device.type == "cpu"
            assert (after.device.type, after.shape, after.dtype) == ("meta", before.shape, before.dtype)
        else:
            assert before == after
    same(batch.to(torch.device("cpu")), batch)


def test_an_evaluation_batch_moves_its_answers_too(batch):
    evaluation = EvaluationBatch(batch, torch.tensor([3]), prompts=[[5, 0]], closing=(1,))
    moved = evaluation.to(torch.device("meta"))
    assert moved.rows.device.type == moved.answers.input_ids.device.type == "meta"
    assert (moved.prompts, moved.closing) == ([[5, 0]], (1,))
    assert evaluation.rows.device.type == "cpu"


@pytest.mark.parametrize("names", [("forget",), ("retain",), ("forget", "retain"), ("alternate",)])
def test_only_some_sections_are_what_they_were(names):
    """Padded as before, so that a row of the smaller batch is a row of the larger."""
    generator = torch.Generator().manual_seed(0)
    coded = {
        name: [
            Encoded(tuple(torch.randint(50, (length,), generator=generator).tolist()), start)
            for length, start in shapes
        ]
        for name, shapes in {
            "forget": [(5, 2), (7, 6)],
            "alternate": [(9, 3)],
            "retain": [(4, 1), (3, 2), (8, 5)],
        }.items()
    }
    whole = collate(coded, range(6))
    some, alone = whole.only(names), collate({name: coded[name] for name in names}, range(10))
    assert some.sections == alone.sections
    assert some.lengths == alone.lengths
    assert torch.equal(some.targets, alone.targets)
    # What stands where an answer token is predicted.
    predicting = [batch.input_ids.flatten()[batch.positions] for batch in (some, alone)]
    assert torch.equal(*predicting)
    assert [row[mask].tolist() for row, mask in zip(some.input_ids, some.attention_mask, strict=True)] == [
        list(each.ids) for name in names for each in coded[name]
    ]
    numbers = {"forget": (0, 1), "alternate": (2,), "retain": (3, 4, 5)}
    assert some.rows == tuple(row for name in names for row in numbers[name])
    assert whole.only(("retain", "alternate", "forget")) is whole
