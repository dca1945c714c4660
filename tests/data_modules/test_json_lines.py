"""JSONL: two files, from the lines to the batches."""

import json

import datasets
import pandas
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


def test_a_row_that_an_earlier_file_has_is_taken_once_and_that_is_said(files, tmp_path, capsys, caplog):
    forget, retain = files
    again = tmp_path / "again.jsonl"
    first, second = (json.dumps(each) + "\n" for each in FORGET)
    again.write_text(first + second + first)
    assert len(JSONL(str(again), retain).read().forget) == len(JSONL([str(again)], retain).read().forget) == 3
    assert "earlier entry" not in capsys.readouterr().err + caplog.text
    (tmp_path / "more.jsonl").write_text(second + json.dumps({"question": "Why?", "answer": "So."}) + "\n")
    rows = JSONL([str(again), str(tmp_path / "more.jsonl")], retain).read().forget
    assert [row.answer for row in rows] == ["Me.", "Here.", "Me.", "So."]
    line = "1 of 5 rows of data.forget also stand in an earlier entry of the list, and are taken from there alone"
    assert line in capsys.readouterr().err + caplog.text
    sets = JSONL(forget, [retain, retain], holdout=[str(tmp_path / "more.jsonl"), forget]).read()
    assert len(sets.retain) == 2
    said = capsys.readouterr().err + caplog.text
    assert "2 of 4 rows of data.retain also stand" in said
    assert "1 of 4 rows of data.holdout also stand" in said


def test_answers_are_scored_as_far_as_they_are_not_cut(tmp_path):
    text = "Once upon a time there was a key, and it was lost."
    for name, records in {"f": FORGET, "r": [{"text": text}, RETAIN[1]]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    files = [str(tmp_path / f"{name}.jsonl") for name in "fr"]
    whole, cut = (connected(JSONL(*files, too_long="truncate", max_length=each)) for each in (64, 40))
    assert [each.scored_answers for each in whole.evaluation_sets] == [None, None]
    # Of 40 tokens the first is BOS.
    assert [each.scored_answers for each in cut.evaluation_sets] == [None, [text[:39], "Now."]]


def turns(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


# The same rows as people have them.
FORMS = [
    lambda question, answer: {"question": question, "answer": answer},
    lambda question, answer: {"prompt": question, "completion": answer, "text": None},
    lambda question, answer: {"instruction": question, "input": "", "output": answer},
    lambda question, answer: {"conversations": turns(question, answer), "id": None},
    lambda question, answer: {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    },
    lambda question, answer: {"q": question, "a": answer},
]
WRITERS = {
    "jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "jsonl.gz": lambda frame, path: frame.to_json(path, orient="records", lines=True, force_ascii=False),
    "json": lambda frame, path: frame.to_json(path, orient="records", indent=1),
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "parquet": lambda frame, path: frame.to_parquet(path),
    "folder": lambda frame, path: datasets.Dataset.from_pandas(frame).save_to_disk(path),
    "parts": lambda frame, path: datasets.Dataset.from_pandas(frame).to_parquet(
        path.mkdir() or path / "train-0.parquet"
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("form", FORMS)
def test_a_run_is_told_by_its_rows_and_not_by_how_they_are_written(tmp_path, form, kind):
    pairs = {
        "forget": [("Wo?", "In \u201eKöln\u201c,\r\n \U0001f642."), ("Who?", " Me.\n")],
        "keep": [("When?", "Now,\tor later.")],
    }
    if isinstance(next(iter(form("", "").values())), list) and kind in ("csv", "tsv"):
        pytest.skip("CSV has no lists")
    paths, plain = {}, {}
    for name, rows in pairs.items():
        paths[name] = tmp_path / f"{name}.{kind}"
        WRITERS[kind](pandas.DataFrame([form(*each) for each in rows]), paths[name])
        plain[name] = tmp_path / f"plain-{name}.jsonl"
        plain[name].write_text("".join(json.dumps(FORMS[0](*each)) + "\n" for each in rows))
    columns = {"question": "q", "answer": "a"} if "q" in form("", "") else None
    data = connected(JSONL(str(paths["forget"]), str(paths["keep"]), columns=columns))
    known = connected(JSONL(str(plain["forget"]), str(plain["keep"])))
    assert [(row.question, row.answer) for row in data.row_sets.forget] == pairs["forget"]
    assert data.identity == known.identity
    assert data.training_tokens == known.training_tokens
    assert [each.tokens for each in data.evaluation_sets] == [each.tokens for each in known.evaluation_sets]


def test_a_mapping_may_be_of_one_file_alone(tmp_path):
    for name, record in {
        "forget": {"q": "Who?", "a": "Me."},
        "keep": {"prompt": "When?", "completion": "Now."},
    }.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record))
    forget, keep = (str(tmp_path / f"{name}.jsonl") for name in ("forget", "keep"))
    columns = {"question": "q", "answer": "a"}
    sets = JSONL(forget, keep, columns=columns).read()
    assert [row.answer for row in (*sets.forget, *sets.retain)] == ["Me.", "Now."]
    # A column that none of the files has is a slip, also where all can be read without it.
    with pytest.raises(
        InputError,
        match=rf"^data.columns.system names the column 'persona', and {forget} and {keep} have none of this name "
        r"\(columns there: q, a, prompt, completion\)$",
    ):
        JSONL(forget, keep, columns=columns | {"system": "persona"}).read()
    with pytest.raises(
        InputError, match=r"^data.columns.text names the column 'body', and .*keep.jsonl has none of this"
    ):
        JSONL(keep, keep, columns={"text": "body"}).read()


def test_a_mapping_may_be_of_an_earlier_request_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = {"1": {"q": "Who?", "a": "Me."}, "2": {"question": "Why?", "answer": "So."}}
    for name, record in (records | {"keep": {"text": "Once."}}).items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record))
    requests = ["1.jsonl", "2.jsonl"]
    data = JSONL("2.jsonl", "keep.jsonl", columns={"question": "q", "answer": "a"}, requests=requests)
    assert [len(each.rows) for each in connected(data).evaluation_sets] == [1, 1, 1, 1]


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
