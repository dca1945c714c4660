"""Rows under chat templates of many shapes: ids equal transformers' own, and the answer's place is right."""

from dataclasses import replace
from datetime import datetime

import pytest
from chat_templates import CHATML, CHATML_PROMPT, QUESTION, R1, SHAPES, THINKING, chat_tokenizer, turns

from dipo_pl.chat_rendering import without_spaces
from dipo_pl.data_modules.row_encoder import RowEncoder, encode
from dipo_pl.errors import InputError
from dipo_pl.prompts import ChatTemplate
from dipo_pl.rows import Row

LONG = 4096
CHAT = turns(CHATML, CHATML_PROMPT)
ROW = Row((("user", QUESTION),), "Mira.", where="forget.jsonl, line 3")
DATE = {"date_string": "10 Apr 2025"}
ANSWERS = [
    "hi", "in", "a", " Mira.", "Mira.\n", "\n\nMira.\t ", QUESTION, "assistant", "user", "10", "<|im_end|>", "</s>",
    "[INST]", "<end_of_turn>\n", "Ünï 日本 🙂", "One.\n\nTwo.\n  Three.", "{{ messages }}", "'type': 'text'",
]  # fmt: skip


def theirs(tokenizer, shape, turns, in_parts=False, **options):
    """Return transformers' own ids, with the fixed date where the template asks for the clock."""
    template = tokenizer.chat_template.replace(*shape.dated) if shape.dated else tokenizer.chat_template
    messages = [
        {"role": role, "content": [{"type": "text", "text": content}] if in_parts else content}
        for role, content in turns
    ]
    return tokenizer.apply_chat_template(
        messages, chat_template=template, return_dict=False, **DATE, **shape.variables, **options
    )


@pytest.fixture(
    scope="module", params=[{}, {"rstrip": True, "lstrip": True}], ids=["plain", "markers take in spaces"]
)
def tokenizer(request):
    return chat_tokenizer(**request.param)


@pytest.mark.parametrize("name", SHAPES)
def test_ids_are_transformers_own_and_the_answer_is_where_the_template_writes_it(tokenizer, name):
    shape = SHAPES[name]
    tokenizer.chat_template = shape.template
    in_parts = name == "lists of parts"
    prompt = theirs(tokenizer, shape, ROW.messages, in_parts, add_generation_prompt=True)
    before = tokenizer.decode(prompt) + shape.extra
    for answer in ANSWERS:
        turns = (*ROW.messages, ("assistant", answer))
        expected = theirs(tokenizer, shape, turns, in_parts)
        found = encode(ROW, answer, ChatTemplate(variables=shape.variables), tokenizer, LONG)
        ids = list(found.ids)
        if not shape.closing and answer != tokenizer.eos_token:
            assert ids.pop() == tokenizer.eos_token_id
        assert ids == expected[: len(ids)]
        assert not tokenizer.decode(expected[len(ids) :]).replace("<|endoftext|>", "").strip()
        assert ids[: len(prompt) - 1] == prompt[:-1]
        end = len(found.ids) - found.closing
        texts = [
            tokenizer.decode(each)
            for each in (ids[: found.answer_start], ids[found.answer_start : end], ids[end:])
        ]
        # Spaces may share a token with what is beside them, and markers that take them in are decoded without.
        written = [before, shape.writes(answer), shape.closing]
        assert [without_spaces(each) for each in texts] == [without_spaces(each) for each in written]
        if not tokenizer.added_tokens_decoder[tokenizer.vocab_size].rstrip:
            assert "".join(texts).rstrip() == "".join(written).rstrip()
        assert found.answer_start < end


def encoded(of, answer="Mira.", messages=ROW.messages, **options):
    """Return the texts of prompt, answer and closing."""
    tokenizer = chat_tokenizer(of)
    found = encode(Row(messages, answer, where=ROW.where), answer, ChatTemplate(**options), tokenizer, LONG)
    end = len(found.ids) - found.closing
    parts = found.ids[: found.answer_start], found.ids[found.answer_start : end], found.ids[end:]
    return tuple(map(tokenizer.decode, parts))


THOUGHT = "<think>\nWho was it?\n</think>\n\nMira."


@pytest.mark.parametrize(("template", "answer", "options", "expected"), [
    (THINKING, THOUGHT, {}, ("<|im_start|>assistant\n", THOUGHT, "<|im_end|>")),
    (THINKING, "<think>Who was it?</think>Mira.", {}, ("<|im_start|>assistant\n", THOUGHT, "<|im_end|>")),
    (R1, "Mira.", {}, ("<|Assistant|>", "Mira.", "</s>")),
    (R1, THOUGHT.replace("</think>\n\n", "</think>"), {}, ("<|Assistant|>", "Mira.", "</s>")),
    (R1, "Mira.", {"prefill": "\n</think>\n\n"}, ("<|Assistant|><think>\n\n</think>\n\n", "Mira.", "</s>")),
    (CHAT, "Mira.", {"prefill": "Well: "}, ("<|im_start|>assistant\nWell:", " Mira.", "<|im_end|>")),
    (turns("{{ m.role + m.content }}", "{{ 'A:' }}"), "Mira.", {}, ("assistant", "Mira.", "</s>")),
], ids=[
    "an answer with a thought", "a thought that the template sets", "a generation prompt that opens a thought",
    "a thought that the template leaves out", "a thought closed by prefill", "an answer begun by prefill",
    "another generation prompt",
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_thoughts(template, answer, options, expected):
    before, *rest = encoded(template, answer, **options)
    assert before.endswith(expected[0])
    assert tuple(rest) == expected[1:]


def test_a_generation_prompt_that_conversations_lack_is_told():
    with pytest.warns(
        UserWarning,
        match=r"answer after '<think>\\n', but writes conversations without it: .*data\.prompt\.prefill",
    ):
        encoded(R1)


@pytest.mark.filterwarnings("ignore:.*writes conversations without it")
def test_a_prefilled_answer_follows_the_system_message_of_the_generation_prompt():
    before, *_ = encoded(AT_THE_LAST, system="Be brief.", prefill=" ")
    assert before.startswith("[INST] Be brief.\n\nWho is")


def test_earlier_thoughts_are_left_out_as_the_template_does():
    messages = (("user", "Hi"), ("assistant", THOUGHT), ("user", QUESTION))
    before, *rest = encoded(THINKING, messages=messages)
    assert before == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nMira.<|im_end|>\n<|im_start|>user\n"
        "Who is Mira Okafor?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert rest == ["Mira.", "<|im_end|>"]


# --- dates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [
    "%d %b %Y", "%B %d, %Y", "%Y-%m-%d", "%A, %-d %B %y", "%H:%M:%S %p", "%j %U %W %w %u %V %G", "%%d %c %x %X",
    "%D %F %T %R", "100%", "", "%Q %é",
])  # fmt: skip
def test_the_clock_of_a_template_stands_still(form):
    template = turns(
        CHATML, "", "{{ strftime_now(" + repr(form) + ")|upper }}{{ ' ' ~ strftime_now(format='%Y') }}"
    )
    before, *_ = encoded(template, date_string="1 Mar 2031")
    fixed = datetime(2031, 3, 1).strftime(form)
    assert before.startswith(f"{fixed.upper()} 2031<|im_start|>user")


@pytest.mark.parametrize(
    "start",
    ["", "\n", "\n\n", "  ", "  {% if true %} {% endif %}\n", "{#- note #}\n", "{%- if true %}x{% endif %}"],
)
def test_a_still_clock_leaves_the_rest_of_a_template_as_it_is(start):
    template = start + turns(
        CHATML, "", "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}"
    )
    before, *_ = encoded(template)
    plain = template.replace("strftime_now('%Y')", "'2025'")
    messages = [{"role": "user", "content": QUESTION}]
    assert before.startswith(chat_tokenizer(plain).apply_chat_template(messages, tokenize=False))


def test_a_date_string_that_is_no_date():
    asked, given = (
        turns(CHATML, "", before)
        for before in ("{{ strftime_now('%Y') }}", "{{ date_string or strftime_now('%Y') }}")
    )
    assert encoded(given, date_string="today")[0].startswith("today<|im_start|>")
    with pytest.raises(
        InputError, match=r"data\.prompt\.date_string must be a date such as 10 Apr 2025 .*\(got it's\)"
    ):
        encoded(asked, date_string="it's")


# --- errors -----------------------------------------------------------------------------------------------

NAMED = {"rag": CHAT, "tool_use": CHAT}
CONVERSATION = (("user", "Hi"), ("user", QUESTION))
# As Mistral's: a system message is written only before a last turn of the user, so never in a conversation with an answer.
AT_THE_LAST = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system + '\n\n' if loop.last and system else '') + m.content + ' [/INST]' }}{% else %}"
    "{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
AT = r"the row that begins 'Who is Mira Okafor\?' \(forget\.jsonl, line 3\)"


@pytest.mark.parametrize(("template", "options", "message"), [
    (None, {}, r"^the tokenizer has no chat template: use the prompt format QuestionAnswer or Llama2Chat$"),
    (NAMED, {},
     r"has the chat templates rag, tool_use and none that is the default: choose one with data\.prompt\.template$"),
    (NAMED, {"template": "chat"}, r"has the chat templates rag, tool_use and none of the name 'chat'"),
    (CHAT, {"template": "rag"},
     r"has one chat template, without a name: leave out data\.prompt\.template \(got 'rag'\)"),
    (CHAT, {"variables": {"enable_thinkin": False}},
     r"^the chat template of the tokenizer has no variable 'enable_thinkin' \(it reads add_generation_prompt, messages\)"),
    # Words of the template that are no variables of it.
    *((THINKING, {"variables": {name: False}}, rf"no variable '{name}' \(it reads .*enable_thinking.*\)")
      for name in ("thinking", "think", "m", "role", "loop", "endif")),
    *((CHAT, {"variables": {name: [{}]}}, f"has no variable '{name}'") for name in ("tools", "documents")),
    (CHAT, {"date_string": "1 Mar 2031"},
     r"writes no date: leave out data\.prompt\.date_string \(got 1 Mar 2031\)$"),
    ("{% for m in messages %}", {},
     r"^the chat template of the tokenizer is not a Jinja template: TemplateSyntaxError: Unexpected end"),
    (turns("{{ m.content + 1 }}", ""), {},
     rf"refuses {AT}, turn 1 of 3 \(user, 'Hi'\): TypeError: can only concatenate"),
    (turns("{{ m.name.first }}", ""), {}, rf"refuses {AT}, turn 1 of 3 \(user, 'Hi'\): UndefinedError: "),
    (turns("{{ m.content }}{{ 1 / (2 - loop.index) }}", ""), {},
     rf"{AT}, turn 2 of 3 \(user, 'Who is.*\): ZeroDivisionError: "),
    (SHAPES["gemma"].template, {},
     rf"^the chat template of the tokenizer refuses {AT}, turn 2 of 3 .*: roles must alternate$"),
    (SHAPES["gemma-2"].template, {"system": "Be."},
     rf"refuses {AT}, turn 1 of 4 \(system, 'Be\.'\): System role not supported$"),
    (turns("{% if m.role == 'user' %}{{ m.content }}{% endif %}", ""), {},
     rf"does not write the answer as it is to {AT}: use the"),
    (turns("{{ m.content[:12] }}", ""), {}, "does not write the answer as it is to"),
    (turns("{{ m.content[::-1] }}", ""), {}, "does not write the answer as it is to"),
    (turns("{{ m.content + ' ' + m.content }}", ""), {}, f"writes the answer 2 times to {AT}"),
    (turns("{{ m.content ~ m.content|length }}", ""), {},
     f"writes text that changes with the answer around the answer to {AT}"),
    (turns("{{ ('!' if 'Mira' in m.content) ~ m.role ~ m.content }}", "").replace("')", "' else '')"), {},
     f"writes other text around the answer than around other answers to {AT}: remove from the answer 'Mira.' what"),
    (turns("{{ m.content if m.role == 'assistant' else m.role }}", ""), {},
     rf"leaves out a turn of {AT}: remove turn 2 \(user, "),
    (turns("{{ m.content if m.role != 'system' else '' }}", ""), {"system": "Be."},
     r"leaves out a turn .*: leave out data\.prompt\.system$"),
    (turns("{% if m.role != 'system' or not add_generation_prompt %}{{ m.content }} {% endif %}", ""),
     {"system": "Be.", "prefill": " "}, r"leaves out a turn .*: leave out data\.prompt\.system$"),
    (AT_THE_LAST, {"system": "Be."}, r"leaves out a turn .*: leave out data\.prompt\.system$"),
    (AT_THE_LAST, {"messages": (("system", "Be."), *CONVERSATION)}, r"leaves out .*: remove turn 1 \(system, 'Be\.'\)$"),
    (turns("{{ m.content.replace('Mira.', ' ') }}", ""), {},
     rf"writes nothing of the answer to {AT}: change the answer 'Mira\.'"),
])  # fmt: skip
def test_what_is_refused(template, options, message):
    with pytest.raises(InputError, match=message) as error:
        encoded(template, **{"messages": CONVERSATION, **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["tokenize", "messages", "date_string", "chat_template", "add_generation_prompt"]
)
def test_variables_that_are_no_templates_own(name):
    with pytest.raises(InputError, match=rf"^data\.prompt\.variables cannot set {name}, "):
        ChatTemplate(variables={name: 1})


def test_a_template_by_name_and_by_default():
    templates = {"default": CHAT, "short": turns("{{ m.content }}", "")}
    assert encoded(templates)[2] == "<|im_end|>"
    assert encoded(templates, template="short") == ("Who is Mira Okafor?", "Mira.", "</s>")


def test_errors_name_the_model_and_the_template():
    tokenizer = chat_tokenizer({"rag": "{{ raise_exception('no') }}"})
    tokenizer.name_or_path = "./model"
    with pytest.raises(
        InputError, match=rf"^the chat template 'rag' of \./model refuses {AT}, turn 1 of 2 .*: no$"
    ):
        encode(ROW, "Mira.", ChatTemplate(template="rag"), tokenizer, LONG)


def test_answers_that_the_template_rewrites_are_counted():
    tokenizer = chat_tokenizer(SHAPES["lower case"].template)
    encoder = RowEncoder(tokenizer, ChatTemplate(), LONG, "error")
    rows = encoder.rows([ROW, replace(ROW, answer=" mira.\n")])
    assert [each.rewritten for each in rows] == [True, False]
    with pytest.warns(UserWarning, match="writes 1 of 2 training rows otherwise than the rows have them"):
        encoder.warn_of_changes("training rows", rows)


def test_no_second_beginning_of_the_text():
    tokenizer = chat_tokenizer(SHAPES["llama-3"].template)
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    found = encode(ROW, "Mira.", ChatTemplate(), tokenizer, LONG)
    assert found.ids.count(tokenizer.bos_token_id) == 1
