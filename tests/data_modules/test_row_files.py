"""Rows read from records and JSON-lines files, and the errors for those that cannot be used."""

import json
import re

import pytest

from dipo_pl.data_modules.row_files import read_json_lines, row_from
from dipo_pl.errors import InputError
from dipo_pl.rows import Row

ANSWERED = {"question": "Who?", "answer": "Me."}
QUESTION = (("user", "Who?"),)
USER, ASSISTANT = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}


@pytest.mark.parametrize(("record", "row"), [
    (ANSWERED, Row(QUESTION, "Me.")),
    (ANSWERED | {"perturbed_answer": None, "paraphrased_answer": None}, Row(QUESTION, "Me.")),
    (ANSWERED | {"perturbed_answer": []}, Row(QUESTION, "Me.")),
    (ANSWERED | {"perturbed_answer": "You."}, Row(QUESTION, "Me.", wrong_answers=("You.",))),
    (ANSWERED | {"paraphrased_answer": "It was me.", "perturbed_answer": ["You.", "They."]},
     Row(QUESTION, "Me.", "It was me.", ("You.", "They."))),
    (ANSWERED | {"alternate_answer": "He."}, Row(QUESTION, "Me.", alternate_answers=("He.",))),
    ({"messages": [USER, ASSISTANT], "alternate_answer": ["He.", "She."], "perturbed_answer": "You."},
     Row(QUESTION, "Me.", wrong_answers=("You.",), alternate_answers=("He.", "She."))),
    ({"text": "Once."}, Row((), "Once.")),
    ({"messages": [{"role": "system", "content": ""}, USER, ASSISTANT, USER, {**ASSISTANT, "content": "I."}]},
     Row((("system", ""), ("user", "Who?"), ("assistant", "Me."), ("user", "Who?")), "I.")),
])  # fmt: skip
def test_record_to_row(record, row):
    assert row_from(record, "here") == row


@pytest.mark.parametrize(("record", "message"), [
    ({}, r"needs the columns .* \(got none\)"),
    ({"prompt": "Who?", "response": "Me."}, r"needs the columns .* \(got prompt, response\)"),
    ({"question": "Who?"}, r"'answer' must be a non-empty text \(got None\)"),
    ({"answer": "Me."}, r"'question' must be a non-empty text \(got None\)"),
    (ANSWERED | {"question": 3}, r"'question' must be a non-empty text \(got 3\)"),
    (ANSWERED | {"answer": ["Me."]}, r"'answer' must be a non-empty text \(got \['Me.'\]\)"),
    (ANSWERED | {"answer": " \n"}, "'answer' must be a non-empty text"),
    ({"text": ""}, r"'text' must be a non-empty text \(got ''\)"),
    (ANSWERED | {"paraphrased_answer": ""}, "'paraphrased_answer' must be a non-empty text"),
    (ANSWERED | {"paraphrased_answer": ["It was me."]}, "'paraphrased_answer' must be a non-empty text"),
    (ANSWERED | {"perturbed_answer": 5}, r"'perturbed_answer' must be a list of non-empty texts \(got 5\)"),
    (ANSWERED | {"perturbed_answer": {"a": "You."}}, "'perturbed_answer' must be a list"),
    (ANSWERED | {"perturbed_answer": ["You.", 5]}, "'perturbed_answer' must be a list"),
    (ANSWERED | {"perturbed_answer": ["You.", " "]}, "'perturbed_answer' must be a list"),
    (ANSWERED | {"alternate_answer": 5}, r"'alternate_answer' must be a list of non-empty texts \(got 5\)"),
    (ANSWERED | {"alternate_answer": ["He.", ""]}, "'alternate_answer' must be a list"),
])  # fmt: skip
def test_unusable_records(record, message):
    with pytest.raises(InputError, match=f"^here: .*{message}"):
        row_from(record, "here")


LIST = r"must be a list of \{role, content\} that ends with an assistant message"
END = "must end with a non-empty assistant message"
PART = {"type": "text", "text": "Me."}


@pytest.mark.parametrize(("messages", "message"), [
    ("Who? Me.", LIST + r" \(got 'Who\? Me\.'\)"),
    ([], LIST),
    ([ASSISTANT], LIST),
    ([USER, USER], END + r".* \(got 'user', 'Who\?'\)"),
    ([USER, {**ASSISTANT, "content": " "}], END),
    ([USER, {"role": "assistant"}], r"turn 2 of 2 \(assistant\): 'content' must be a text .* \(got None\)"),
    ([USER, {"content": "Me."}], r"turn 2 of 2: must be \{role, content\}"),
    ([{"role": "user", "content": None}, ASSISTANT], r"turn 1 of 2 \(user\): 'content' must be .* \(got None\)"),
    ([{"role": 1, "content": "Who?"}, ASSISTANT], "turn 1 of 2: must be"),
    (["Who?", ASSISTANT], r"turn 1 of 2: must be \{role, content\} \(got 'Who\?'\)"),
    ([USER, {**ASSISTANT, "content": [PART, PART]}], r"turn 2 of 2 \(assistant\): 'content' must be a text or a list"),
    ([USER, {**ASSISTANT, "content": [{"type": "image"}]}], "images and tool calls are not supported"),
    ([USER, {**ASSISTANT, "content": []}], r"\(got \[\]\)"),
])  # fmt: skip
def test_malformed_messages(messages, message):
    with pytest.raises(InputError, match=rf"^here: 'messages',? .*{message}"):
        row_from({"messages": messages}, "here")


def test_a_content_of_one_text_part_is_that_text():
    found = row_from({"messages": [USER, {**ASSISTANT, "content": [PART]}]}, "here")
    assert found == Row(QUESTION, "Me.")
    assert found.where == "here"


class TestJsonLines:
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

    @pytest.mark.parametrize(
        ("content", "text"),
        [(b'\xef\xbb\xbf{"text": "one"}', "one"), ('{"text": "\\ud83d\\ude42"}', "🙂")],
        ids=["byte-order mark", "surrogate pair"],
    )
    def test_encodings(self, file, content, text):
        assert read_json_lines(file(content)) == [Row((), text)]

    @pytest.mark.parametrize(("content", "message"), [
        ("", "{path} is empty: it needs at least one row$"),
        ("\n \n", "{path} is empty: it needs at least one row$"),
        ('{"text": "zwölf"}'.encode("latin-1"), r"{path} is not UTF-8 text \(byte 0xf6 at "),
    ])  # fmt: skip
    def test_unusable_files(self, file, content, message):
        path = file(content)
        with pytest.raises(InputError, match="^" + message.replace("{path}", re.escape(str(path)))):
            read_json_lines(path)

    def test_missing_file_and_folder(self, tmp_path):
        with pytest.raises(
            InputError, match=rf"^no file {tmp_path}/none.jsonl: give the path of a JSON-lines file$"
        ):
            read_json_lines(tmp_path / "none.jsonl")
        with pytest.raises(InputError, match=rf"^cannot read {tmp_path}: .*directory"):
            read_json_lines(tmp_path)

    @pytest.mark.parametrize(("line", "message"), [
        ('{"text": "two"', r"not valid JSON \(Expecting ',' delimiter at column 15\)$"),
        ("two", r"not valid JSON \(Expecting value at column 1\)$"),
        ("[" * 20000, r"JSON is nested too deeply$"),
        ('{"text": ' + "1" * 5000 + "}", r"JSON cannot be used \(Exceeds the limit"),
        ('["two"]', r"must be a JSON object \(got list\)$"),
        ('{"text": 2}', r"'text' must be a non-empty text \(got 2\)$"),
        ('{"text": "\\ud83d"}', r"contains '\\ud83d', an unpaired surrogate, which is not text$"),
    ], ids=["cut", "no JSON", "deep", "huge number", "list", "number", "surrogate"])  # fmt: skip
    def test_unusable_lines_are_named_by_number(self, file, line, message):
        path = file(f'{{"text": "one"}}\n\n{line}\n{{"text": "four"}}\n')
        with pytest.raises(InputError, match=f"^{path}, line 3: {message}"):
            read_json_lines(path)
