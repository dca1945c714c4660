"""Forget sets that are asked for one after another: joined, kept apart, measured, and never retained."""

import json

import pytest
from connected import connected

from dipo_pl.data_modules.fictitious import FictitiousAuthors
from dipo_pl.data_modules.json_lines import JSONL
from dipo_pl.data_modules.requests import joined, refuse_overlaps, without
from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.prompts import QuestionAnswer
from dipo_pl.rows import Row


def rows(*texts):
    return [Row((), text) for text in texts]


A, B, C, D = rows("a", "b", "c", "d")


def test_joined_keeps_the_order_and_what_stands_twice_once():
    assert joined([[B, A], [A, C], [C, D]]) == [B, A, C, D]


def test_a_question_with_another_answer_is_another_row():
    one, other = (Row((("user", "Who?"),), answer) for answer in ("Me.", "You."))
    assert joined([[one], [other]]) == [one, other]
    assert without([one, other], [other]) == [one]


def test_without():
    assert without([A, B, A, C], [A, D]) == [B, C]


class TestOverlaps:
    def test_none(self):
        refuse_overlaps({"one": [A, B], "two": [C], "three": [D]})

    @pytest.mark.parametrize("nested", [False, True])
    def test_a_part(self, nested):
        with pytest.raises(InputError, match="requests one and three overlap: 1 of 2 rows of the second"):
            refuse_overlaps({"one": [A, B], "two": [C], "three": [B, D]}, nested)

    def test_all_of_an_earlier_one(self):
        growing = {"one": [A], "two": [A, B], "three": [A, B, C]}
        refuse_overlaps(growing, nested=True)
        with pytest.raises(InputError, match="one and two overlap"):
            refuse_overlaps(growing)
        with pytest.raises(InputError, match="three and two overlap: 2 of 2"):
            refuse_overlaps(dict(reversed(growing.items())), nested=True)


class TestDataModule:
    @pytest.fixture(autouse=True)
    def files(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name, texts in {"1": "ab", "2": "cd", "keep": "abcdefgh"}.items():
            lines = (json.dumps({"question": f"{text}?", "answer": f"{text}{text}."}) for text in texts)
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))

    def ready(self, data):
        return connected(data)

    def answers(self, given):
        return "".join(row.answer[0] for row in given)

    def test_several_files_are_one_forget_set(self):
        data = self.ready(JSONL(["1.jsonl", "2.jsonl"], "keep.jsonl"))
        assert self.answers(data.row_sets.forget) == "abcd"

    def test_what_was_asked_for_is_measured_and_not_retained(self):
        data = self.ready(JSONL("2.jsonl", "keep.jsonl", requests=["1.jsonl", "2.jsonl"]))
        assert self.answers(data.row_sets.forget) == "cd"
        assert self.answers(data.row_sets.retain) == "efgh"
        sets = {each.name: self.answers(each.rows) for each in data.evaluation_sets}
        assert sets == {"forget": "cd", "retain": "efgh", "request_1": "ab", "request_2": "cd"}

    def test_requests_are_measured_whatever_else_is(self):
        data = JSONL("1.jsonl", "keep.jsonl", requests=["1.jsonl"], evaluate=["forget"], evaluation_rows=1)
        sets = {each.name: self.answers(each.rows) for each in self.ready(data).evaluation_sets}
        assert sets == {"forget": "a", "request_1": "a"}

    @pytest.mark.parametrize(
        ("forget", "requests", "said"),
        [
            (["1.jsonl", "2.jsonl"], ["1.jsonl"], "2 of 4 forget rows are in none of data.requests"),
            ("1.jsonl", ["1.jsonl", "keep.jsonl"], "all retain rows are in one of data.requests"),
            ("1.jsonl", ["1.jsonl", "9.jsonl"], "no file 9.jsonl"),
            ([], None, "data.forget names no forget set"),
            ("1.jsonl", ["1.jsonl", "1.jsonl"], None),
        ],
    )
    def test_refused(self, forget, requests, said):
        data = JSONL(forget, "keep.jsonl", requests=requests)
        if said is None:
            assert len(self.ready(data).evaluation_sets) == 3
            return
        with pytest.raises(InputError, match=said):
            self.ready(data)

    def test_data_with_one_forget_set(self):
        with pytest.raises(InputError, match="FictitiousAuthors has only one forget set"):
            self.ready(FictitiousAuthors(4, 1, requests=["author_1"]))

    def test_a_set_of_its_own_prompt_and_length(self):
        """Cut answers count what the tokenizer puts before a text, as MUSE's own code does."""
        long, short = Row((("user", "q"),), "abcdef"), Row((("user", "q"),), "ab")
        data = JSONL("1.jsonl", "keep.jsonl")
        measured = EvaluationSet("mine", [long, short], prompt=QuestionAnswer("", ":"), new_tokens=4)
        read = data.read
        data.read = lambda: (found := read()) and type(found)(found.forget, found.retain, [measured])
        (found,) = self.ready(data).evaluation_sets
        assert found.cut_answers == ["abc", "ab"]
        (batch,) = data.val_dataloader()[0]
        assert [data.tokenizer.decode(each, skip_special_tokens=True) for each in batch.prompts] == [
            "q:",
            "q:",
        ]

    def test_where_nothing_is_generated_nothing_is_cut(self):
        data = JSONL("1.jsonl", "keep.jsonl")
        for each in self.ready(data).evaluation_sets:
            assert each.cut_answers is None
