"""Continual unlearning: forget sets that are requested in turn are joined, kept apart, measured, and never retained."""

import json

import pytest
from connected import connected

from dipo_pl.data_modules.fictitious_authors import FictitiousAuthors
from dipo_pl.data_modules.json_lines import JSONL
from dipo_pl.data_modules.requests import joined, refuse_overlaps, sets_to_forget, without
from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import EvaluationSet, RowSets
from dipo_pl.prompts import QuestionAnswer
from dipo_pl.rows import Row

A, B, C, D = (Row((), text) for text in "abcd")


def test_joined_and_without():
    assert joined([[B, A], [A, C], [C, D]]) == [B, A, C, D]
    # A set keeps what it has twice.
    assert joined([[A, A], [B, A, B]]) == [A, A, B, B]
    assert without([A, B, A, C], [A, D]) == [B, C]
    # A question with another answer is another row.
    one, other = (Row((("user", "Who?"),), answer) for answer in ("Me.", "You."))
    assert joined([[one], [other]]) == [one, other]
    assert without([one, other], [other]) == [one]


@pytest.mark.parametrize(("requests", "nested", "message"), [
    ({"one": [A, B], "two": [C], "three": [D]}, False, None),
    ({"one": [A, B], "two": [C], "three": [B, D]}, False, "requests one and three overlap: 1 of 2 rows of the second"),
    ({"one": [A, B], "two": [C], "three": [B, D]}, True, "requests one and three overlap: 1 of 2 rows of the second"),
    ({"one": [A], "two": [A, B], "three": [A, B, C]}, True, None),
    ({"one": [A], "two": [A, B], "three": [A, B, C]}, False, "one and two overlap"),
    ({"three": [A, B, C], "two": [A, B], "one": [A]}, True, "three and two overlap: 2 of 2"),
])  # fmt: skip
def test_overlaps(requests, nested, message):
    if message is None:
        refuse_overlaps(requests, nested)
        return
    with pytest.raises(InputError, match=message):
        refuse_overlaps(requests, nested)


ASKED = Row((("user", "a"),), "a")


@pytest.mark.parametrize(("requests", "forget", "sets"), [
    ([], [A, B], ["forget"]),
    ([[A, B], [C]], [C], ["request_2"]),
    ([[A, B], [C]], [A, B, C], ["request_1", "request_2"]),
    # A part of a request is what `forget` measures.
    ([[A, B], [C]], [A], ["forget"]),
    ([[A, B], [C]], [B, C], ["forget"]),
    # One text that holds the text of an earlier request; an answer is no such part.
    ([[A], [Row((), "ab")]], [Row((), "ab")], ["request_1", "request_2"]),
    ([[ASKED], [Row((), "ab")]], [Row((), "ab")], ["request_2"]),
])  # fmt: skip
def test_sets_of_what_is_forgotten_now(requests, forget, sets):
    assert sets_to_forget(requests, forget) == sets


class TestDataModule:
    @pytest.fixture(autouse=True)
    def files(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name, texts in {"1": "ab", "2": "cd", "keep": "abcdefgh"}.items():
            lines = (json.dumps({"question": f"{text}?", "answer": f"{text}{text}."}) for text in texts)
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))

    def answers(self, rows):
        return "".join(row.answer[0] for row in rows)

    @pytest.mark.parametrize(
        ("forget", "options", "rows", "sets"),
        [
            (["1.jsonl", "2.jsonl"], {}, ("abcd", "abcdefgh"), {"forget": "abcd", "retain": "abcdefgh"}),
            ("2.jsonl", {"requests": ["1.jsonl", "2.jsonl"]}, ("cd", "efgh"),
             {"forget": "cd", "retain": "efgh", "request_1": "ab", "request_2": "cd"}),
            ("1.jsonl", {"requests": ["1.jsonl"], "evaluate": ["forget"], "evaluation_rows": 1}, ("ab", "cdefgh"),
             {"forget": "a", "request_1": "a"}),
            ("1.jsonl", {"requests": ["1.jsonl"], "requests_to_come": ["2.jsonl"]}, ("ab", "cdefgh"),
             {"forget": "ab", "retain": "efgh", "request_1": "ab"}),
            ("1.jsonl", {"requests": ["1.jsonl", "1.jsonl"]}, ("ab", "cdefgh"),
             {"forget": "ab", "retain": "cdefgh", "request_1": "ab"}),
        ],
        ids=["several files are one set", "earlier requests are not retained", "requests are always measured",
             "later requests are retained but not measured", "a request made twice"],
    )  # fmt: skip
    def test_rows_and_sets(self, forget, options, rows, sets):
        data = connected(JSONL(forget, "keep.jsonl", **options))
        assert (self.answers(data.row_sets.forget), self.answers(data.row_sets.retain)) == rows
        assert {each.name: self.answers(each.rows) for each in data.evaluation_sets} == sets
        assert all(each.cut_answers is None for each in data.evaluation_sets)

    @pytest.mark.parametrize(("forget", "requests", "message"), [
        (["1.jsonl", "2.jsonl"], ["1.jsonl"], "2 of 4 forget rows are in none of data.requests"),
        ("1.jsonl", ["1.jsonl", "keep.jsonl"], "all retain rows are in one of data.requests"),
        ("1.jsonl", ["1.jsonl", "9.jsonl"], "no file 9.jsonl"),
        ([], None, "data.forget names no rows"),
    ])  # fmt: skip
    def test_refused(self, forget, requests, message):
        with pytest.raises(InputError, match=message):
            connected(JSONL(forget, "keep.jsonl", requests=requests))

    def test_data_with_one_forget_set(self):
        with pytest.raises(InputError, match="FictitiousAuthors has only one forget set"):
            connected(FictitiousAuthors(4, 1, requests=["author_1"]))

    def test_a_set_with_its_own_prompt_and_length(self):
        """Cut answers count the special tokens before a text, as MUSE's code does."""
        rows = [Row((("user", "q"),), answer) for answer in ("abcdef", "ab")]
        data = JSONL("1.jsonl", "keep.jsonl")
        sets = data.read()
        own = EvaluationSet("mine", rows, prompt=QuestionAnswer("", ":"), new_tokens=4)
        data.read = lambda: RowSets(sets.forget, sets.retain, [own])
        (found,) = connected(data).evaluation_sets
        assert found.cut_answers == ["abc", "ab"]
        (batch,) = data.val_dataloader()[0]
        prompts = [data.tokenizer.decode(each, skip_special_tokens=True) for each in batch.prompts]
        assert prompts == ["q:", "q:"]
