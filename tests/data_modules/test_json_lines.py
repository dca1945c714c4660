"""JSONL: two files, from the lines to the batches."""

import json

import pytest
from connected import connected

from dipo_pl.data_modules.json_lines import JSONL
from dipo_pl.errors import InputError
from dipo_pl.prompts import Llama2Chat
from dipo_pl.rows import Row

FORGET = [
    {"question": "Who?", "answer": "Me.", "paraphrased_answer": "It was me.", "perturbed_answer": ["You."]},
    {"question": "Where?", "answer": "Here.", "paraphrased_answer": "Right here.", "perturbed_answer": ["No."]},
]  # fmt: skip
RETAIN = [{"text": "Once upon a time."}, {"question": "When?", "answer": "Now."}]


@pytest.fixture
def files(tmp_path):
    for name, records in {"forget": FORGET, "retain": RETAIN}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(tmp_path / "forget.jsonl"), str(tmp_path / "retain.jsonl")


def test_rows_and_evaluation_sets(files):
    sets = JSONL(*files).read()
    assert sets.forget == [
        Row((("user", "Who?"),), "Me.", "It was me.", ("You.",)),
        Row((("user", "Where?"),), "Here.", "Right here.", ("No.",)),
    ]
    assert sets.retain == [Row((), "Once upon a time."), Row((("user", "When?"),), "Now.")]
    assert [(each.name, each.rows, each.options) for each in sets.evaluation] == [
        ("forget", sets.forget, False),
        ("retain", sets.retain, False),
    ]


def test_batches(files):
    data = connected(JSONL(*files, prompt=Llama2Chat(), batch_size=2), vocabulary=300)
    forget_rows = ["<s>[INST] Who? [/INST]Me.", "<s>[INST] Where? [/INST]Here."]
    retain_rows = ["<s>Once upon a time.", "<s>[INST] When? [/INST]Now."]
    (batch,) = data.train_dataloader()
    texts = [
        data.tokenizer.decode(ids[mask])
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    assert sorted(texts[:2]) == sorted(f"{each}</s>" for each in forget_rows)
    assert sorted(texts[2:]) == sorted(f"{each}</s>" for each in retain_rows)
    forget, retain = (next(iter(loader)) for loader in data.val_dataloader())
    for measured, expected in ((forget, forget_rows), (retain, retain_rows)):
        for row, place in zip(measured.rows.tolist(), measured.originals, strict=True):
            assert data.tokenizer.decode(measured.answers.input_ids[place]).startswith(f"{expected[row]}</s>")
    assert (len(forget.answers.lengths), len(retain.answers.lengths)) == (6, 2)
    # A plain text is predicted from BOS alone.
    assert retain.prompts[retain.rows.tolist().index(0)] == [data.tokenizer.bos_token_id]


def test_a_holdout_is_measured_and_never_trained_on(files, tmp_path):
    holdout = tmp_path / "holdout.jsonl"
    holdout.write_text('{"question": "Whose?", "answer": "Nobody\'s."}\n')
    data = connected(JSONL(*files, holdout=str(holdout)))
    assert [(each.name, [row.answer for row in each.rows]) for each in data.evaluation_sets][2:] == [
        ("holdout", ["Nobody's."])
    ]
    assert any("Nobody" in text for text in data.module.texts)  # of the tokenizer
    (batch,) = data.train_dataloader()
    assert not any("Nobody" in data.tokenizer.decode(ids) for ids in batch.input_ids)
    with pytest.raises(InputError, match="2 of 2 holdout rows are also in the forget or retain set"):
        connected(JSONL(*files, holdout=files[0]))


@pytest.mark.parametrize("broken", [0, 1])
def test_a_bad_line_names_its_file(files, broken):
    with open(files[broken], "a") as file:
        file.write("{}\n")
    with pytest.raises(InputError, match=rf"^{files[broken]}, line 3: needs the columns .* \(got none\)$"):
        connected(JSONL(*files))
