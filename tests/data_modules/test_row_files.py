"""Rows read from records, and the errors for those that cannot be used; nothing of a record is left out unsaid."""

import json

import pytest

from dipo_pl.data_modules.columns import check_columns
from dipo_pl.data_modules.row_files import RowReader, read_rows, row_from
from dipo_pl.errors import InputError
from dipo_pl.rows import Row

ANSWERED = {"question": "Who?", "answer": "Me."}
QUESTION = (("user", "Who?"),)
USER, ASSISTANT = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}
TURNS = [USER, ASSISTANT]
PART = {"type": "text", "text": "Me."}
NAN = float("nan")


@pytest.mark.parametrize(("record", "row"), [
    (ANSWERED, Row(QUESTION, "Me.")),
    (ANSWERED | {"perturbed_answer": None, "paraphrased_answer": None}, Row(QUESTION, "Me.")),
    (ANSWERED | {"paraphrased_question": "Which?", "entity": "Me"},
     Row(QUESTION, "Me.", paraphrased_question="Which?", entity="Me")),
    ({"text": "Once.", "entity": "Once"}, Row((), "Once.", entity="Once")),
    (ANSWERED | {"perturbed_answer": []}, Row(QUESTION, "Me.")),
    (ANSWERED | {"perturbed_answer": "You."}, Row(QUESTION, "Me.", wrong_answers=("You.",))),
    (ANSWERED | {"paraphrased_answer": "It was me.", "perturbed_answer": ["You.", "They."]},
     Row(QUESTION, "Me.", "It was me.", ("You.", "They."))),
    (ANSWERED | {"alternate_answer": "He."}, Row(QUESTION, "Me.", alternate_answers=("He.",))),
    ({"messages": TURNS, "alternate_answer": ["He.", "She."], "perturbed_answer": "You."},
     Row(QUESTION, "Me.", wrong_answers=("You.",), alternate_answers=("He.", "She."))),
    ({"text": "Once."}, Row((), "Once.")),
    ({"messages": [{"role": "system", "content": ""}, USER, ASSISTANT, USER, {**ASSISTANT, "content": "I."}]},
     Row((("system", ""), ("user", "Who?"), ("assistant", "Me."), ("user", "Who?")), "I.")),
    (ANSWERED | {"system": "Be brief."}, Row((("system", "Be brief."), *QUESTION), "Me.")),
    ({"messages": TURNS, "system": "Be brief."}, Row((("system", "Be brief."), *QUESTION), "Me.")),
    ({"messages": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]}, Row(QUESTION, "Me.")),
    ({"messages": [USER, {"role": "assistant", "content": [PART]}]},
     Row(QUESTION, "Me.")),
    # A null is as good as no column, wherever it is.
    *((ANSWERED | {name: null}, Row(QUESTION, "Me."))
      for null in (None, NAN) for name in ("messages", "text", "system", "perturbed_answer", "alternate_answer", "mine")),
    ({"question": None, "answer": NAN, "text": "Once."}, Row((), "Once.")),
    ({"question": "", "answer": "", "messages": [], "text": "Once."}, Row((), "Once.")),
    ({"text": None, "question": None, "messages": TURNS}, Row(QUESTION, "Me.")),
    (ANSWERED | {"text": "", "context": " "}, Row(QUESTION, "Me.")),
    (ANSWERED | {"perturbed_answer": ["You.", None, NAN]}, Row(QUESTION, "Me.", wrong_answers=("You.",))),
    ({"messages": [{**USER, "tool_calls": None, "name": None}, None, ASSISTANT]}, Row(QUESTION, "Me.")),
])  # fmt: skip
def test_record_to_row(record, row):
    assert row_from(record, "here") == row


@pytest.mark.parametrize(("record", "message"), [
    ({}, r"needs the columns .* \(got none\)"),
    ({"mine": "Who?"}, r"needs the columns .* \(got mine\)$"),
    ({"question": "Who?"}, r"'answer' must be a non-empty text \(got None\)"),
    ({"answer": "Me."}, r"'question' must be a non-empty text \(got None\)"),
    (ANSWERED | {"question": 3}, r"'question' must be a non-empty text \(got 3\)"),
    (ANSWERED | {"answer": ["Me."]}, r"'answer' must be a non-empty text \(got \['Me.'\]\)"),
    (ANSWERED | {"answer": " \n"}, "'answer' must be a non-empty text"),
    (ANSWERED | {"answer": None}, "'answer' must be a non-empty text"),
    ({"text": ""}, r"'text' must be a non-empty text \(got ''\)"),
    (ANSWERED | {"paraphrased_answer": ""}, "'paraphrased_answer' must be a non-empty text"),
    (ANSWERED | {"paraphrased_answer": ["It was me."]}, "'paraphrased_answer' must be a non-empty text"),
    (ANSWERED | {"paraphrased_question": 5}, "'paraphrased_question' must be a non-empty text"),
    (ANSWERED | {"entity": "You"}, r"'entity' must stand in the answer \(got 'You'\): write it as the answer does, or"),
    ({"text": "Once.", "entity": "once"}, r"'entity' must stand in the answer \(got 'once'\)"),
    (ANSWERED | {"perturbed_answer": 5}, r"'perturbed_answer' must be a list of non-empty texts \(got 5\)"),
    (ANSWERED | {"perturbed_answer": {"a": "You."}}, "'perturbed_answer' must be a list"),
    (ANSWERED | {"perturbed_answer": ["You.", 5]}, "'perturbed_answer' must be a list"),
    (ANSWERED | {"perturbed_answer": ["You.", " "]}, "'perturbed_answer' must be a list"),
    (ANSWERED | {"perturbed_answer": "['You.', 'They.']"}, "'perturbed_answer' is a list written as one text"),
    (ANSWERED | {"alternate_answer": 5}, r"'alternate_answer' must be a list of non-empty texts \(got 5\)"),
    (ANSWERED | {"alternate_answer": ["He.", ""]}, "'alternate_answer' must be a list"),
    # ShareGPT, Alpaca, prompt and completion, DPO, TRL's conversations: the mapping that reads them.
    ({"conversations": TURNS}, "give --data.columns '{messages: conversations}'$"),
    ({"prompt": "Who?", "response": "Me."}, r"\(got prompt, response\): give --data.columns '{question: prompt, answer: r"),
    ({"instruction": "Say", "input": "who", "output": "Me."}, r"'{question: \[instruction, input\], answer: output}'$"),
    ({"instruction": "Say", "input": "", "output": "Me."}, "'{question: instruction, answer: output}'$"),
    ({"context": "I am.", "question": "Who?", "response": "Me."}, r"'{question: \[context, question\], answer: response}'$"),
    ({"prompt": "Who?", "chosen": "Me.", "rejected": "You."}, "'{question: prompt, answer: chosen}'$"),
    ({"prompt": [USER], "completion": [ASSISTANT]}, r"'{messages: \[prompt, completion\]}'$"),
    ({"chosen": TURNS, "rejected": TURNS}, "'{messages: chosen}'$"),
    ({"Question": "Who?", "Model Answer": "Me.", "answer_id": "a"}, "'{question: Question, answer: Model Answer}'$"),
    ({"question": "Who?", "goldAnswer": "Me."}, r"'answer' .* \(got None\): give .*: question, answer: goldAnswer}'$"),
    ({"content": "Once."}, "'{text: content}'$"),
    # What a row would lose.
    *(({"text": "Who?", name: "Me."}, f"'{name}' would be left out beside 'text': give --data.columns "
       f"'{{question: text, answer: {name}}}', or --data.columns '{{text: text}}' to use 'text' alone$")
      for name in ("labels", "label", "completion", "response", "output", "target", "expected_output", "Response")),
    ({"text": "Who?", "prompt": "Who?", "completion": "Me."}, "'prompt' and 'completion' would be .*'{question: prompt"),
    *((ANSWERED | {name: "More."}, rf"{name!r} would be left out, .*'{{question: \[{name}, question\], answer: answer}}' to "
       "put it before the question, or --data.columns '{question: question, answer: answer}' to leave it out$")
      for name in ("context", "input", "instruction", "passage", "chat_history")),
])  # fmt: skip
def test_unusable_records(record, message):
    with pytest.raises(InputError, match=f"^here: .*{message}"):
        row_from(record, "here")


LIST = r"must be a list of \{role, content\} that ends with an assistant message"
END = "must end with a non-empty assistant message"


@pytest.mark.parametrize(("messages", "message"), [
    ("Who? Me.", LIST + r" \(got 'Who\? Me\.'\)"),
    ([], LIST),
    ([ASSISTANT], LIST),
    ([ASSISTANT, None], LIST),
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
    *(([USER, {**ASSISTANT, key: [{"a": "b"}]}], rf"turn 2 of 2 \(assistant\): has '{key}', which a row cannot hold")
      for key in ("tool_calls", "function_call", "reasoning_content", "thinking")),
    ([USER, {**ASSISTANT, "weight": 0}], "ends with a message of weight 0, and it is"),
])  # fmt: skip
def test_malformed_messages(messages, message):
    with pytest.raises(InputError, match=rf"^here: 'messages',? .*{message}"):
        row_from({"messages": messages}, "here")


def test_a_row_knows_its_place():
    assert row_from(ANSWERED, "here").where == "here"


@pytest.mark.parametrize(("columns", "record", "row"), [
    ({"question": "prompt", "answer": "labels"}, {"prompt": "Who?", "labels": "Me.", "text": "x"}, Row(QUESTION, "Me.")),
    ({"question": ["instruction", "input"], "answer": "output"}, {"instruction": "Say", "input": "who", "output": "Me."},
     Row((("user", "Say\n\nwho"),), "Me.")),
    ({"question": ["instruction", "input"], "answer": "output"}, {"instruction": "Who?", "input": "", "output": "Me."},
     Row(QUESTION, "Me.")),
    ({"question": ["question", "choices"], "answer": "answer"}, ANSWERED | {"choices": ["A", "B"]},
     Row((("user", "Who?\n\nA\nB"),), "Me.")),
    ({"messages": ["prompt", "completion"]}, {"prompt": [USER], "completion": [ASSISTANT]}, Row(QUESTION, "Me.")),
    ({"text": "body", "system": "s"}, {"body": "Once.", "s": None}, Row((), "Once.")),
    ({"question": "question", "answer": "answer", "perturbed_answer": "wrong"}, ANSWERED | {"wrong": ["You."]},
     Row(QUESTION, "Me.", wrong_answers=("You.",))),
    ({"question": "q", "answer": "a"}, ANSWERED, Row(QUESTION, "Me.")),
])  # fmt: skip
def test_mapped_columns(columns, record, row):
    check_columns(columns)
    assert RowReader(columns).row(record, "here") == row


@pytest.mark.parametrize(("columns", "message"), [
    ({}, "must map one form of row: messages, or question and answer, or text .got none"),
    ({"question": "q"}, "must map one form of row: .* .got question.$"),
    ({"question": "q", "answer": "a", "text": "t"}, "must map one form of row"),
    ({"prompt": "question"}, "must say what .* are made of, such as {question: prompt, answer: completion} .got 'prompt'.$"),
    ({"text": []}, r"data.columns.text must name a column, or a list of them \(got \[\]\)"),
])  # fmt: skip
def test_unusable_mappings(columns, message):
    with pytest.raises(InputError, match=message):
        check_columns(columns)


def test_a_mapped_column_is_named_as_in_the_file():
    reader = RowReader({"question": "prompt", "answer": "completion"})
    with pytest.raises(InputError, match=r"^here: 'completion' must be a non-empty text \(got None\)"):
        reader.row({"prompt": "Who?"}, "here")


def test_columns_that_are_not_read_are_named_once_a_file(tmp_path):
    path = tmp_path / "forget.jsonl"
    named = [{**USER, "name": "Ann"}, ASSISTANT]
    records = [
        ANSWERED | {"label": 1, "id": 5},
        ANSWERED | {"tools": ["x"], "label": None, "perturbed_answer": "You."},
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in [*records, *records, {"messages": named}]))
    with pytest.warns(UserWarning) as warned:  # noqa: PT030
        assert len(read_rows(path)) == 5
    assert [str(each.message) for each in warned] == [
        f"{path}: columns label, id, tools, messages[].name are not read "
        "(used: question, answer, perturbed_answer, messages)"
    ]


def test_nothing_is_said_where_all_is_read(tmp_path, recwarn):
    path = tmp_path / "forget.jsonl"
    path.write_text(json.dumps(ANSWERED | {"mine": None, "system": "Be brief."}))
    assert len(read_rows(path)) == 1
    assert not recwarn
