"""Large sets of rows and sequences, kept in columns and flat arrays: the same values, the same batches, less memory."""

import json
import pickle
import tracemalloc
from dataclasses import fields

import pytest
from connected import connected, rows, texts_of

from dipo_pl.batch import Encoded
from dipo_pl.data_modules import large_sequence, stored_rows
from dipo_pl.data_modules.json_lines import JSONL
from dipo_pl.data_modules.packed_sequences import Groups, PackedSequences, packed
from dipo_pl.data_modules.requests import joined, without
from dipo_pl.data_modules.stored_rows import StoredRows, stored
from dipo_pl.rows import Row, shared_rows

FULL = Row(
    (("system", "S."), ("user", "Wo?"), ("assistant", ""), ("user", "\u00fc\r\n\u2028\U0001f642")), "A.", "B.", ("C.", "D."),
    ("E.",), "F?", "A", "here, line 5",
)  # fmt: skip
ROWS = [FULL, Row((), "Once."), *rows("f", 5), Row((("user", "Who?"),), "Me.", wrong_answers=("You.",))]
SEQUENCES = [
    Encoded((1,), 1), Encoded((5, 2**31 - 1, 0), 2, 1, True), Encoded((), 1, 0, False, True),
    Encoded((7, 8), 1, 2, True, True),
]  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    """More than three rows are many."""
    monkeypatch.setattr(large_sequence, "FEW", 3)
    monkeypatch.setattr(stored_rows, "FEW", 3)


def whole(row):
    """All fields: equality leaves out the place."""
    return [getattr(row, each.name) for each in fields(row)]


def test_few_rows_are_a_list(small):
    assert stored(iter(ROWS[:3])) == ROWS[:3]
    assert stored([]) == []
    assert packed(SEQUENCES[:3]) == SEQUENCES[:3]


def test_rows_come_back_as_they_were(small):
    kept = stored(iter(ROWS))
    assert isinstance(kept, StoredRows)
    assert len(kept) == len(ROWS)
    assert list(map(whole, kept)) == list(map(whole, ROWS))
    assert [kept[place] for place in range(-len(ROWS), len(ROWS))] == ROWS * 2
    assert list(pickle.loads(pickle.dumps(kept))) == ROWS
    for place in (len(ROWS), -len(ROWS) - 1):
        with pytest.raises(IndexError):
            kept[place]


@pytest.mark.parametrize("part", [
    slice(None), slice(2, 5), slice(None, 2), slice(-3, None), slice(5, 2), slice(0, 99), slice(None, None, 2),
    slice(None, None, -1),
], ids=str)  # fmt: skip
def test_parts(small, part):
    assert list(stored(ROWS)[part]) == ROWS[part]
    assert list(packed(SEQUENCES)[part]) == SEQUENCES[part]
    assert list(Groups(packed(SEQUENCES), 1)[part]) == [[each] for each in SEQUENCES[part]]


def test_sequences_come_back_as_they_were(small):
    kept = packed(iter(SEQUENCES))
    assert isinstance(kept, PackedSequences)
    assert list(kept) == SEQUENCES
    assert [kept[place] for place in range(-4, 4)] == SEQUENCES * 2
    assert list(Groups(kept, 2)) == [SEQUENCES[:2], SEQUENCES[2:]]
    with pytest.raises(IndexError):
        kept[4]
    with pytest.raises(IndexError):
        Groups(kept, 2)[2]


def test_sets_of_many_rows(small):
    twice = joined([ROWS, stored(ROWS), rows("f", 7)])
    assert isinstance(twice, StoredRows)
    assert list(twice) == [*ROWS, *rows("f", 7)[5:]]
    assert list(without(stored(ROWS), ROWS[1:3])) == [ROWS[0], *ROWS[3:]]
    assert shared_rows([*rows("f", 6), FULL, FULL], stored(ROWS)) == 7


def described(data):
    """What a run is made of and compared by, and its first epoch."""
    return (
        data.identity,
        data.training_tokens,
        [(each.name, len(each.rows), each.tokens) for each in data.evaluation_sets],
        [texts_of(data, batch) for batch in data.train_dataloader()],
        [
            [(batch.rows.tolist(), batch.answers.input_ids.tolist()) for batch in loader]
            for loader in data.val_dataloader()
        ],
        data.longest,
    )


def test_a_run_is_the_same_however_its_rows_are_kept(tmp_path, monkeypatch):
    for name, count in {"forget": 7, "keep": 20, "unseen": 5}.items():
        lines = ({"question": f"{name} {each}?", "answer": f"{name}{each}." * (1 + each % 4),
                  "perturbed_answer": ["No.", f"Not {each}."]} for each in range(count))  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    files = (str(tmp_path / f"{name}.jsonl") for name in ("forget", "keep", "unseen"))
    paths = dict(zip(("forget", "retain", "holdout"), files, strict=True))
    few = connected(JSONL(**paths, batch_size=2))
    for module in (large_sequence, stored_rows):
        monkeypatch.setattr(module, "FEW", 3)
    many = connected(JSONL(**paths, batch_size=2))
    assert isinstance(few.row_sets.retain, list)
    assert isinstance(many.row_sets.retain, StoredRows)
    assert isinstance(many.training_sequences["retain"], PackedSequences)
    assert described(few) == described(many)


def test_stored_rows_take_a_third_of_the_memory():
    many = (
        Row(
            (("user", f"Who is person {each}, and why?"),),
            f"Person {each} is here.",
            where=f"a file, row {each}",
        )
        for each in range(20_000)
    )
    tracemalloc.start()
    try:
        kept = list(many)
        objects = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert stored(kept).table.nbytes < objects / 3
