"""Rows read from records, and the errors for those that cannot be used; nothing of a record is left out unsaid."""

import json
import re

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


def turn(speaker, words):
    return {"from": speaker, "value": words}


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
    # OpenAI's and TRL's, Alpaca's, ShareGPT's.
    ({"prompt": "Who?", "completion": " Me."}, Row(QUESTION, " Me.")),
    ({"prompt": "Who?", "completion": "Me.", "text": "Who? Me.", "perturbed_answer": "You."},
     Row(QUESTION, "Me.", wrong_answers=("You.",))),
    ({"prompt": [USER], "completion": [ASSISTANT]}, Row(QUESTION, "Me.")),
    ({"prompt": [{"role": "system", "content": "S."}, USER],
      "completion": [ASSISTANT, USER, {**ASSISTANT, "content": "I."}]},
     Row((("system", "S."), *QUESTION, ("assistant", "Me."), ("user", "Who?")), "I.")),
    ({"instruction": "Say", "input": "who", "output": "Me."}, Row((("user", "Say\n\nwho"),), "Me.")),
    *(({"instruction": "Who?", "input": none, "output": "Me."}, Row(QUESTION, "Me.")) for none in ("", " ", None, NAN)),
    ({"instruction": "Who?", "output": "Me.", "system": "S.", "text": "### Instruction: Who? ### Response: Me."},
     Row((("system", "S."), *QUESTION), "Me.")),
    ({"conversations": TURNS}, Row(QUESTION, "Me.")),
    ({"conversations": [turn("system", "S."), turn("human", "Who?"), turn("gpt", "Me."), turn("human", "Why?"),
                        turn("gpt", "So.")], "id": "x"},
     Row((("system", "S."), *QUESTION, ("assistant", "Me."), ("user", "Why?")), "So.")),
    ({"conversations": [turn("human", "Who?"), turn("Assistant", "Me.")], "system": "S."},
     Row((("system", "S."), *QUESTION), "Me.")),
    # Columns of another form in the same table.
    ({"question": None, "answer": None, "prompt": "Who?", "completion": "Me."}, Row(QUESTION, "Me.")),
    ({"instruction": None, "input": None, "output": None, "conversations": TURNS}, Row(QUESTION, "Me.")),
    ({"prompt": None, "completion": None, "text": "Once."}, Row((), "Once.")),
    # A null is as good as no column, wherever it is.
    *((ANSWERED | {name: null}, Row(QUESTION, "Me."))
      for null in (None, NAN) for name in ("messages", "text", "system", "perturbed_answer", "alternate_answer", "mine")),
    ({"question": None, "answer": NAN, "text": "Once."}, Row((), "Once.")),
    ({"question": "", "answer": "", "messages": [], "text": "Once."}, Row((), "Once.")),
    ({"text": None, "question": None, "messages": TURNS}, Row(QUESTION, "Me.")),
    (ANSWERED | {"text": "", "context": " "}, Row(QUESTION, "Me.")),
    *((ANSWERED | {name: blank}, Row(QUESTION, "Me.")) for blank in ("", " \n")
      for name in ("system", "paraphrased_answer", "paraphrased_question", "entity")),
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
    # Half of a form.
    ({"prompt": "Who?", "completion": ""}, r"'completion' must be a non-empty text \(got ''\)$"),
    ({"prompt": "Who?", "completion": None, "label": True}, r"'completion' must be a non-empty text \(got None\)$"),
    ({"prompt": " ", "completion": "Me."}, r"'prompt' must be a non-empty text \(got ' '\)$"),
    ({"prompt": "Who?", "completion": [ASSISTANT]}, r"'completion' must be a non-empty text \(got \[\{'role'"),
    ({"prompt": [USER], "completion": []}, r"'prompt' must be a non-empty text \(got \[\{'role'"),
    ({"instruction": "Say", "input": "who", "output": ""}, r"'output' must be a non-empty text \(got ''\)$"),
    ({"instruction": "", "input": "Who?", "output": "Me."}, r"'instruction' must be .* \(got ''\): give .*: input, answ"),
    ({"conversations": [turn("human", "Who?")]}, "'conversations' must be a list of"),
    ({"conversations": [turn("human", "Who?"), turn("human", "Why?")]}, "'conversations' must end with a non-empty ass"),
    ({"conversations": [turn("human", "Who?"), turn("observation", "42"), turn("gpt", "Me.")]},
     r"'conversations', turn 2 of 3: 'from' must be human, .*, system \(got 'observation'\): write the role"),
    # Other names, DPO: the mapping that reads them.
    ({"prompt": "Who?", "response": "Me."}, "'completion' must be a .*: give .*'{question: prompt, answer: response}'$"),
    ({"query": "Who?", "response": "Me."}, r"\(got query, response\): give .* '{question: query, answer: response}'$"),
    ({"dialogue": TURNS}, "give --data.columns '{messages: dialogue}'$"),
    ({"task": "Say", "input": "who", "target": "Me."}, r"'{question: input, answer: target}'$"),
    ({"context": "I am.", "question": "Who?", "response": "Me."}, r"'{question: \[context, question\], answer: response}'$"),
    ({"prompt": "Who?", "chosen": "Me.", "rejected": "You."}, "'{question: prompt, answer: chosen}'$"),
    ({"prompt": [USER], "chosen": [ASSISTANT]}, r"'{messages: \[prompt, chosen\]}'$"),
    ({"chosen": TURNS, "rejected": TURNS}, "'{messages: chosen}'$"),
    ({"Question": "Who?", "Model Answer": "Me.", "answer_id": "a"}, "'{question: Question, answer: Model Answer}'$"),
    ({"question": "Who?", "goldAnswer": "Me."}, r"'answer' .* \(got None\): give .*: question, answer: goldAnswer}'$"),
    ({"content": "Once."}, "'{text: content}'$"),
    # What a row would lose.
    *(({"text": "Who?", name: "Me."}, f"'{name}' would be left out beside 'text': give --data.columns "
       f"'{{question: text, answer: {name}}}', or --data.columns '{{text: text}}' to use 'text' alone$")
      for name in ("labels", "label", "completion", "response", "output", "target", "expected_output", "Response")),
    ({"text": "Who?", "query": "Who?", "response": "Me."}, "'query' and 'response' would be .*'{question: query, answer"),
    ({"instruction": "Say", "input": "who", "output": "Me.", "context": "C."},
     r"'context' would be .*'{question: \[context, instruction, input\], answer: output}' to put .*: \[instruction, inp"),
    # Values that no mapping makes a text of.
    *(({"prompt": "Who?", "completion": "Me.", "history": value}, r"'history' would be .*: write it into the question as "
       r"text, or --data.columns '{question: prompt, answer: completion}' to leave it out$")
      for value in ([["Hi", "Ho"]], {"user": "Hi"}, TURNS)),
    ({"context": "C.", "question": "Who?", "answers": {"text": ["Me."]}}, "'answer' .*: write the text that 'answers' "),
    ({"question": "Who?", "choices": ["Me.", "You."], "answer": 1}, r"'answer' must be a non-empty text \(got 1\)$"),
    # Names as a shell and YAML take them.
    ({"user's question": "Who?", "bot's answer": "Me."}, re.escape(
        """--data.columns '{question: user'"'"'s question, answer: bot'"'"'s answer}'""")),
    ({"question:": "Who?", "#answer": "Me."}, re.escape("""{question: '"'"'question:'"'"', answer: '"'"'#answer'"'"'}""")),
    # All rows in one object.
    ({"data": [ANSWERED, ANSWERED]}, "holds a list of rows, 'data': write the list alone, or one object on each line$"),
    ({"question": ["Who?", "Why?"], "answer": ["Me.", "So."]}, "holds columns with all their values: write one object for"),
    ({"question": {"0": "Who?"}, "answer": {"0": "Me."}}, r"holds columns .* \(pandas: orient='records', lines=True\)$"),
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
    ({"prompt": "question"}, "must say what .* are made of, such as {question: query, answer: response} .got 'prompt'.$"),
    ({"text": []}, r"data.columns.text must name a column, or a list of them \(got \[\]\)"),
])  # fmt: skip
def test_unusable_mappings(columns, message):
    with pytest.raises(InputError, match=message):
        check_columns(columns)


@pytest.mark.parametrize(("columns", "record", "message"), [
    ({"question": "q", "answer": "a"}, {"q": "Who?", "a": None}, r"'a' must be a non-empty text \(got None\)$"),
    ({"question": "q", "answer": "a"}, {"q": "Who?", "b": "Me."},
     r"has no column 'a', of which data.columns makes 'answer' \(columns there: q, b\)$"),
    ({"question": ["c", "q"], "answer": "a"}, {"a": "Me."}, "has no column 'c', of which data.columns makes 'question' "),
    ({"question": "q", "answer": "a"}, {"Q": "Who?", "A": "Me."}, r"needs the columns of data.columns \(a, q\), or .*got Q"),
])  # fmt: skip
def test_mapped_columns_that_are_not_there(columns, record, message):
    with pytest.raises(InputError, match=f"^here: {message}"):
        RowReader(columns).row(record, "here")


def test_a_mapped_column_that_no_row_has_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": "Who?", "a": "Me.", "wrong": null}\n{"q": "Why?", "a": "So."}\n')
    columns = {"question": "q", "answer": "a", "perturbed_answer": "wrong"}
    assert [row.answer for row in read_rows(path, columns)] == ["Me.", "So."]
    with pytest.raises(
        InputError,
        match=rf"^data.columns.perturbed_answer names the column 'wrogn', and {path} has none of this name \(columns there: "
        r"q, a, wrong\)$",
    ):
        read_rows(path, columns | {"perturbed_answer": "wrogn"})


def test_earlier_answers_of_conversations_are_named_as_context(tmp_path):
    path = tmp_path / "rows.jsonl"
    records = [
        {"messages": TURNS},
        {"messages": [*TURNS, *TURNS]},
        {"conversations": [*TURNS, *TURNS, *TURNS]},
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    with pytest.warns(UserWarning) as warned:  # noqa: PT030
        assert [len(row.messages) for row in read_rows(path)] == [1, 3, 5]
    assert [str(each.message) for each in warned] == [
        f"{path}: 2 conversations with several answers: the last one is trained and measured, and those before it are its "
        "context"
    ]


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
