"""Rows as users write them, and what is said of those that cannot be used."""

import json

import pytest

from dipo_pl.errors import InputError
from dipo_pl.rows import Row, read_json_lines, row_from, shared_rows

ANSWERED = {"question": "Who?", "answer": "Me."}
USER, ASSISTANT = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}


class TestRowFrom:
    def test_question_and_answer(self):
        assert row_from(ANSWERED, "here") == Row((("user", "Who?"),), "Me.")

    def test_answers_for_the_truth_ratio(self):
        record = ANSWERED | {"paraphrased_answer": "It was me.", "perturbed_answer": ["You.", "They."]}
        assert row_from(record, "here") == Row((("user", "Who?"),), "Me.", "It was me.", ("You.", "They."))

    def test_one_wrong_answer_may_be_a_plain_text(self):
        assert row_from(ANSWERED | {"perturbed_answer": "You."}, "here").wrong_answers == ("You.",)

    @pytest.mark.parametrize("absent", [None, []])
    def test_absent_answers(self, absent):
        row = row_from(ANSWERED | {"perturbed_answer": absent, "paraphrased_answer": None}, "here")
        assert row == Row((("user", "Who?"),), "Me.")

    def test_other_answers_to_its_question(self):
        question = (("user", "Who?"),)
        for given in ("He.", ["He."]):
            row = row_from(ANSWERED | {"alternate_answer": given}, "here")
            assert row == Row(question, "Me.", alternate_answers=("He.",))
        several = {
            "messages": [USER, ASSISTANT],
            "alternate_answer": ["He.", "She."],
            "perturbed_answer": "You.",
        }
        row = row_from(several, "here")
        assert row == Row(question, "Me.", wrong_answers=("You.",), alternate_answers=("He.", "She."))

    def test_plain_text(self):
        row = row_from({"text": "Once."}, "here")
        assert row == Row((), "Once.")
        assert row.question == ""

    def test_messages(self):
        system = {"role": "system", "content": ""}
        row = row_from({"messages": [system, USER, ASSISTANT, USER, {**ASSISTANT, "content": "I."}]}, "here")
        turns = (("system", ""), ("user", "Who?"), ("assistant", "Me."), ("user", "Who?"))
        assert row == Row(turns, "I.")
        assert row.question == "Who?"

    def test_texts_are_all_that_a_tokenizer_has_to_write(self):
        row = Row((("user", "Hi"), ("assistant", "Yes?"), ("user", "Who?")), "Me.", "It was me.", ("You.",))
        assert row.texts() == ["Hi", "Yes?", "Who?", "Me."]

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ({}, "it has none"),
            ({"prompt": "Who?", "response": "Me."}, "needs the columns .* it has prompt, response"),
            ({"question": "Who?"}, "'answer' must be a non-empty text, got None"),
            ({"answer": "Me."}, "'question' must be a non-empty text, got None"),
            (ANSWERED | {"question": 3}, "'question' must be a non-empty text, got 3"),
            (ANSWERED | {"answer": ["Me."]}, r"'answer' must be a non-empty text, got \['Me.'\]"),
            (ANSWERED | {"answer": " \n"}, "'answer' must be a non-empty text"),
            ({"text": ""}, "'text' must be a non-empty text, got ''"),
            (ANSWERED | {"paraphrased_answer": ""}, "'paraphrased_answer' must be a non-empty text"),
            (
                ANSWERED | {"paraphrased_answer": ["It was me."]},
                "'paraphrased_answer' must be a non-empty text",
            ),
            (
                ANSWERED | {"perturbed_answer": 5},
                "'perturbed_answer' must be a list of non-empty texts, got 5",
            ),
            (ANSWERED | {"perturbed_answer": {"a": "You."}}, "'perturbed_answer' must be a list"),
            (ANSWERED | {"perturbed_answer": ["You.", 5]}, "'perturbed_answer' must be a list"),
            (ANSWERED | {"perturbed_answer": ["You.", " "]}, "'perturbed_answer' must be a list"),
            (
                ANSWERED | {"alternate_answer": 5},
                "'alternate_answer' must be a list of non-empty texts, got 5",
            ),
            (ANSWERED | {"alternate_answer": ["He.", ""]}, "'alternate_answer' must be a list"),
        ],
    )
    def test_refusals(self, record, message):
        with pytest.raises(InputError, match=f"^here: .*{message}"):
            row_from(record, "here")

    @pytest.mark.parametrize(
        "messages",
        [
            None,
            "Who? Me.",
            [],
            [ASSISTANT],
            [USER, USER],
            [USER, {**ASSISTANT, "content": " "}],
            [USER, {"role": "assistant"}],
            [USER, {"content": "Me."}],
            [{"role": "user", "content": None}, ASSISTANT],
            [{"role": 1, "content": "Who?"}, ASSISTANT],
            ["Who?", ASSISTANT],
        ],
    )
    def test_malformed_messages(self, messages):
        with pytest.raises(
            InputError, match=r"^here: 'messages' must be a list of \{role, content\} that ends"
        ):
            row_from({"messages": messages}, "here")


class TestReadJsonLines:
    @pytest.fixture
    def file(self, tmp_path):
        def write(content):
            path = tmp_path / "rows.jsonl"
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            return path

        return write

    def test_reads_in_order_and_skips_blank_lines(self, file):
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ("one", "zwölf", "three\u2028")]
        expected = [Row((), "one"), Row((), "zwölf"), Row((), "three\u2028")]
        assert read_json_lines(file(f"{lines[0]}\n\n  \n{lines[1]}\n{lines[2]}")) == expected
        assert read_json_lines(str(file("\r\n".join(lines) + "\r\n"))) == expected

    def test_a_byte_order_mark_is_no_part_of_the_first_line(self, file):
        assert read_json_lines(file(b"\xef\xbb\xbf" + b'{"text": "one"}')) == [Row((), "one")]

    @pytest.mark.parametrize("content", ["", "\n \n"])
    def test_empty(self, file, content):
        path = file(content)
        with pytest.raises(InputError, match=rf"^{path} is empty: it needs at least one row$"):
            read_json_lines(path)

    def test_missing(self, tmp_path):
        with pytest.raises(InputError, match=rf"^no file {tmp_path}/none.jsonl: "):
            read_json_lines(tmp_path / "none.jsonl")

    def test_a_folder(self, tmp_path):
        with pytest.raises(InputError, match=rf"^cannot read {tmp_path}: .*directory"):
            read_json_lines(tmp_path)

    def test_not_utf8(self, file):
        path = file('{"text": "zwölf"}'.encode("latin-1"))
        with pytest.raises(InputError, match=rf"^{path} is not UTF-8 text \(byte 0xf6 at "):
            read_json_lines(path)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"text": "two"', r"not valid JSON \(Expecting ',' delimiter at column 15\)$"),
            ("two", r"not valid JSON \(Expecting value at column 1\)$"),
            ('["two"]', "must be a JSON object, got list$"),
            ('{"text": 2}', "'text' must be a non-empty text, got 2$"),
            ('{"text": "\\ud83d"}', r"holds '\\ud83d', half a surrogate pair, which is no text$"),
        ],
    )
    def test_a_bad_line_is_named_by_its_number(self, file, line, message):
        path = file(f'{{"text": "one"}}\n\n{line}\n{{"text": "four"}}\n')
        with pytest.raises(InputError, match=f"^{path}, line 3: {message}"):
            read_json_lines(path)

    def test_a_whole_surrogate_pair_is_a_letter(self, file):
        assert read_json_lines(file('{"text": "\\ud83d\\ude42"}')) == [Row((), "🙂")]


def test_shared_rows_counts_forget_rows_that_are_retained_to_the_letter():
    one, two, three = (Row((("user", "Who?"),), answer) for answer in ("Me.", "You.", "They."))
    other_question = Row((("user", "Whose?"),), "Me.")
    paraphrased = Row(one.messages, one.answer, "It was me.", ("You.",))
    assert shared_rows([one, two], [three, other_question]) == 0
    assert shared_rows([one, two, one], [three, paraphrased, one]) == 2
    assert shared_rows([paraphrased], [one]) == 1
