"""Padding, positions and sections of a batch, as literal tensors."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dipo_pl.batch import Batch, BatchSection, Encoded, EvaluationBatch, collate

# Token id 0 is real, and 2 stands for a pad id that is EOS: neither may be taken for padding.
FORGET = [Encoded((5, 0, 7, 8, 2), 3), Encoded((5, 2, 2), 1)]
RETAIN = [Encoded((0, 0, 0, 2), 2)]
# Of three kinds, with different numbers of sequences, in two sections.
KINDS = {
    "forget": [Encoded((1, 2, 3, 4, 5), 2), Encoded((6, 7), 1)],
    "alternate": [Encoded((1, 2, 8), 2), Encoded((6, 9, 9, 9, 9, 9, 9), 3)],
    "retain": [Encoded((3, 4, 5), 1)],
}
SECTIONS = {"forget": ("forget", "alternate"), "retain": ("retain",)}


@pytest.fixture
def batch():
    return collate({"forget": FORGET, "retain": RETAIN}, [4, 6, 9])


def same(one, other):
    for field in fields(one):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(ours, Tensor):
            assert_close(ours, theirs, rtol=0, atol=0)
        else:
            assert ours == theirs


def test_every_field(batch):
    expected = Batch(
        input_ids=torch.tensor([[5, 0, 7, 8, 2], [5, 2, 2, 0, 0], [0, 0, 0, 2, 0]]),
        attention_mask=torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 4 + [False]]),
        positions=torch.tensor([2, 3, 5, 6, 11, 12]),
        targets=torch.tensor([8, 2, 2, 2, 0, 2]),
        sections={"forget": BatchSection({"forget": (4, 6)}, (2, 2)), "retain": BatchSection({"retain": (9,)}, (2,))},
    )  # fmt: skip
    same(batch, expected)
    assert batch.lengths == (2, 2, 2)
    assert batch.rows == {"forget": (4, 6), "retain": (9,)}


def test_each_position_is_followed_by_its_target(batch):
    ids, mask = batch.input_ids.flatten(), batch.attention_mask.flatten()
    assert torch.equal(ids[batch.positions + 1], batch.targets)
    # Both are in the same row, and both are tokens rather than padding.
    width = batch.input_ids.shape[1]
    assert torch.equal(batch.positions // width, (batch.positions + 1) // width)
    assert mask[batch.positions].all()
    assert mask[batch.positions + 1].all()


def test_a_section_holds_rows_and_then_their_companions():
    batch = collate(KINDS, [4, 6, 40, 61, 9], SECTIONS)
    assert batch.sections == {
        "forget": BatchSection({"forget": (4, 6), "alternate": (40, 61)}, (3, 1, 1, 4)),
        "retain": BatchSection({"retain": (9,)}, (2,)),
    }
    assert [len(section) for section in batch.sections.values()] == [2, 1]
    same(collate(KINDS, range(5)), collate(KINDS, range(5), {kind: (kind,) for kind in KINDS}))


def test_values_are_split_by_section():
    batch = collate(KINDS | {"none": []}, range(5), SECTIONS | {"none": ("none",)})
    targets = batch.by_section(batch.targets)
    assert {name: each.tolist() for name, each in targets.items()} == {
        "forget": [3, 4, 5, 7, 8, 9, 9, 9, 9],
        "retain": [4, 5],
        "none": [],
    }
    states = torch.arange(22.0).view(11, 2)
    assert batch.by_section(states)["retain"].tolist() == [[18, 19], [20, 21]]


def test_padding_changes_nothing_but_the_width():
    alone = collate({"forget": RETAIN}, [0])
    beside = collate({"forget": RETAIN + FORGET[:1]}, [0, 1])
    assert (alone.input_ids.shape, beside.input_ids.shape) == ((1, 4), (2, 5))
    assert torch.equal(alone.positions, beside.positions[:2])
    assert torch.equal(alone.targets, beside.targets[:2])


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


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_only_some_sections_are_what_they_were(name):
    """Padded as before, so that a row of the smaller batch is a row of the larger."""
    whole = collate(KINDS, [4, 6, 40, 61, 9], SECTIONS)
    some = whole.only({name})
    alone = collate({kind: KINDS[kind] for kind in SECTIONS[name]}, range(4), {name: SECTIONS[name]})
    assert some.sections == {name: whole.sections[name]}
    assert torch.equal(some.targets, alone.targets)
    # What precedes each answer token.
    predicting = [batch.input_ids.flatten()[batch.positions] for batch in (some, alone)]
    assert torch.equal(*predicting)
    assert some.input_ids.shape[1] == whole.input_ids.shape[1]
    rows = [row[mask].tolist() for row, mask in zip(some.input_ids, some.attention_mask, strict=True)]
    assert rows == [list(each.ids) for kind in SECTIONS[name] for each in KINDS[kind]]
    assert whole.only(("retain", "forget")) is whole


def test_values_are_split_by_kind():
    batch = collate(KINDS, range(5), SECTIONS)
    targets = {kind: each.tolist() for kind, each in batch.by_kind(batch.targets).items()}
    assert targets == {"forget": [3, 4, 5, 7], "alternate": [8, 9, 9, 9, 9], "retain": [4, 5]}
    assert batch.sections["forget"].by_kind == {"forget": (3, 1), "alternate": (1, 4)}


@pytest.mark.parametrize("kinds", [("forget", "retain"), ("alternate",), ("retain", "alternate")], ids=str)
def test_only_some_kinds_are_what_they_were(kinds):
    """In their sections, in the batch's order, padded as before."""
    whole = collate(KINDS, [4, 6, 40, 61, 9], SECTIONS)
    some = whole.of_kinds(kinds)
    assert some.rows == {kind: rows for kind, rows in whole.rows.items() if kind in kinds}
    assert list(some.sections) == [name for name in SECTIONS if set(SECTIONS[name]) & set(kinds)]
    sequences = [each for kind in KINDS if kind in kinds for each in KINDS[kind]]
    assert some.lengths == tuple(each.answer_length for each in sequences)
    rows = [row[mask].tolist() for row, mask in zip(some.input_ids, some.attention_mask, strict=True)]
    assert rows == [list(each.ids) for each in sequences]
    assert some.input_ids.shape[1] == whole.input_ids.shape[1]
    answers = [token for each in sequences for token in each.ids[each.answer_start :]]
    assert some.targets.tolist() == answers
    # Each predicted from the token before it.
    assert some.input_ids.flatten()[some.positions + 1].tolist() == answers
    assert whole.of_kinds(KINDS) is whole
