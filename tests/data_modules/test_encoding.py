"""Prompts and answers as token ids, written out: small tokenizers in which every id is known beforehand."""

import pytest
from small_tokenizers import ascii_tokenizer, byte_tokenizer
from tokenizers import normalizers, pre_tokenizers

from dipo_pl.batch import Encoded
from dipo_pl.data_modules.row_encoder import encode
from dipo_pl.errors import InputError
from dipo_pl.prompts import ChatTemplate, Continuation, FewShot, Llama2Chat, QuestionAnswer
from dipo_pl.rows import Row

BOS, EOS = 128, 129
ROW = Row((("user", "Who?"),), "Me.")
TEXT = Row((), "Once.")
PROMPT = b"Question: Who?\nAnswer: "
LONG = 512


class TestFewShot:
    def test_answered_questions_come_before_the_rows_own(self):
        prompt = b"Question: A?\nAnswer: a\n\nQuestion: B?\nAnswer: b\n\n" + PROMPT
        encoded = encode(ROW, "Me.", FewShot([("A?", "a"), ("B?", "b")]), ascii_tokenizer(), LONG)
        assert encoded == Encoded((BOS, *prompt, *b"Me.", EOS), 1 + len(prompt), 1)

    def test_the_prompt_ends_in_its_space_where_a_token_would_join_it_with_the_answer(self):
        tokenizer = byte_tokenizer(("Ġ", "M"))
        letters = dict(zip(" M", tokenizer.convert_tokens_to_ids(["Ġ", "M"]), strict=True))
        together = encode(ROW, "M", QuestionAnswer(), tokenizer, LONG)
        apart = encode(ROW, "M", FewShot([]), tokenizer, LONG)
        assert apart.ids[apart.answer_start - 1 : apart.answer_start + 1] == (letters[" "], letters["M"])
        assert together.ids[together.answer_start] == tokenizer.convert_tokens_to_ids("ĠM")
        assert together.answer_start == apart.answer_start - 1

    def test_too_long_an_answer_is_cut_after_the_prompt(self):
        tokenizer = ascii_tokenizer()
        whole = encode(ROW, "Me.", FewShot([]), tokenizer, LONG)
        encoded = encode(ROW, "Me.", FewShot([]), tokenizer, len(whole.ids) - 2, truncate=True)
        assert encoded == Encoded(whole.ids[:-2], whole.answer_start, 0, True)


def test_every_id():
    # fmt: off
    expected = (
        128,
        81, 117, 101, 115, 116, 105, 111, 110, 58, 32,  # "Question: "
        87, 104, 111, 63,  # "Who?"
        10, 65, 110, 115, 119, 101, 114, 58, 32,  # "\nAnswer: "
        77, 101, 46,  # "Me."
        129,
    )
    # fmt: on
    assert encode(ROW, "Me.", QuestionAnswer(), ascii_tokenizer(), LONG) == Encoded(expected, 24, 1)


@pytest.mark.parametrize(
    ("row", "answer", "prompt_format", "options", "ids", "answer_start"),
    [
        (ROW, "Me.", QuestionAnswer("Q ", " A "), {}, (BOS, *b"Q Who? A Me.", EOS), 10),
        (ROW, "You.", QuestionAnswer(), {}, (BOS, *PROMPT, *b"You.", EOS), 24),
        (ROW, "Me.", QuestionAnswer(), {"start": ()}, (*PROMPT, *b"Me.", EOS), 23),
        (ROW, "Me.", QuestionAnswer(), {"end": ("</s>",)}, (BOS, *PROMPT, *b"Me.", EOS), 24),
        (ROW, "Me.", QuestionAnswer(), {"start": ("<s>", "<s>")}, (BOS, BOS, *PROMPT, *b"Me.", EOS), 25),
        (ROW, "Me.", Llama2Chat(), {}, (BOS, *b"[INST] Who? [/INST]Me.", EOS), 20),
        (ROW, "goes on.", Continuation(), {}, (BOS, *b"Who? goes on.", EOS), 6),
        (TEXT, "Once.", QuestionAnswer(), {}, (BOS, *b"Once.", EOS), 1),
        (TEXT, "Once.", Llama2Chat(), {}, (BOS, *b"Once.", EOS), 1),
        (TEXT, "Once.", Continuation(), {}, (BOS, *b"Once.", EOS), 1),
        (TEXT, "Once.", QuestionAnswer(), {"start": ()}, (*b"Once.", EOS), 1),
    ],
    ids=[
        "other texts around the question", "an answer that is not the row's", "no BOS", "the tokenizer's EOS is not doubled",
        "several special tokens before the text", "no space before the answer", "a space before the continuation",
        "plain text", "plain text in another format", "plain text that continues nothing",
        "the first token cannot be predicted without BOS",
    ],
)  # fmt: skip
def test_formats(row, answer, prompt_format, options, ids, answer_start):
    assert encode(row, answer, prompt_format, ascii_tokenizer(**options), LONG) == Encoded(
        ids, answer_start, 1
    )


def test_one_token_without_bos_leaves_only_its_end():
    encoded = encode(Row((), "O"), "O", QuestionAnswer(), ascii_tokenizer(start=()), LONG)
    assert encoded == Encoded((79, EOS), 1)


def test_formats_of_one_question_refuse_a_conversation():
    row = Row((("user", "Hi"), ("assistant", "Hello"), ("user", "Who?")), "Me.")
    with pytest.raises(
        InputError, match=r"format QuestionAnswer supports one question.* 3 messages .*ChatTemplate$"
    ):
        encode(row, "Me.", QuestionAnswer(), ascii_tokenizer(), LONG)


class TestBoundary:
    """A token may hold the end of the prompt and the start of the answer."""

    def test_a_token_over_the_boundary_belongs_to_the_answer(self):
        tokenizer = byte_tokenizer(("Ġ", "M"), ("ĠM", "e"))
        alone = tokenizer("Question: Who?\nAnswer: ").input_ids
        encoded = encode(ROW, "Me.", QuestionAnswer(), tokenizer, LONG)
        words = tokenizer.convert_ids_to_tokens(encoded.ids)
        assert words[:15] == [*"Question:", "Ġ", *"Who?", "Ċ"]
        assert words[15:] == [*"Answer:", "ĠMe", ".", "</s>"]
        assert encoded.ids[-3:] == (258, 13, 256)  # bytes sorted: "." is 13; EOS 256; " M" 257, " Me" 258
        assert encoded.answer_start == 22
        # The prompt alone would have been one token longer, and the first word of the answer lost.
        assert len(alone) == 23

    def test_a_token_that_ends_with_the_prompt_belongs_to_the_prompt(self):
        tokenizer = byte_tokenizer((":", "Ġ"))
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=False
        )
        encoded = encode(ROW, "Me.", QuestionAnswer(), tokenizer, LONG)
        words = tokenizer.convert_ids_to_tokens(encoded.ids)
        assert words[encoded.answer_start - 1 :] == [":Ġ", "M", "e", ".", "</s>"]

    def test_a_letter_of_several_bytes(self):
        row = Row((("user", "où"),), "ça")
        encoded = encode(row, "ça", QuestionAnswer("", ""), byte_tokenizer(), LONG)
        assert byte_tokenizer().convert_ids_to_tokens(encoded.ids) == ["o", "Ã", "¹", "Ã", "§", "a", "</s>"]
        assert encoded.answer_start == 3

    def test_a_merge_inside_a_letter_of_the_answer(self):
        row = Row((("user", "ù"),), "ù")
        encoded = encode(row, "ù", QuestionAnswer("", ""), byte_tokenizer(("¹", "Ã")), LONG)
        assert byte_tokenizer(("¹", "Ã")).convert_ids_to_tokens(encoded.ids) == ["Ã", "¹Ã", "¹", "</s>"]
        assert encoded.answer_start == 1

    def test_a_character_that_the_tokenizer_puts_in(self):
        # As Llama 2's puts a space before every text: the tokens are one more than the characters.
        tokenizer = ascii_tokenizer()
        tokenizer.backend_tokenizer.normalizer = normalizers.Prepend("_")
        encoded = encode(ROW, "Me.", Llama2Chat(), tokenizer, LONG)
        assert encoded == Encoded((BOS, *b"_[INST] Who? [/INST]Me.", EOS), 21, 1)


class TestLength:
    """ROW takes 28 tokens: BOS, 23 of the prompt, 3 of the answer, EOS."""

    @pytest.mark.parametrize(("length", "truncate", "expected"), [
        (28, False, Encoded((BOS, *PROMPT, *b"Me.", EOS), 24, 1, cut=False)),
        (28, True, Encoded((BOS, *PROMPT, *b"Me.", EOS), 24, 1, cut=False)),
        (25, True, Encoded((BOS, *PROMPT, *b"M"), 24, cut=True)),
    ])  # fmt: skip
    def test_truncation(self, length, truncate, expected):
        assert encode(ROW, "Me.", QuestionAnswer(), ascii_tokenizer(), length, truncate) == expected

    @pytest.mark.parametrize(
        ("row", "length", "truncate", "message"),
        [
            (ROW, 27, False, r"the row that begins 'Who\?' has 28 tokens, more than data.max_length 27: .* to truncate$"),
            (Row((), "a" * 100), 100, False, "the row that begins 'a{60}' has 102 tokens"),
            (ROW, 24, True, r"no answer token is left in the row that begins 'Who\?': its answer is 'Me.', its prompt 24 "
             "tokens, data.max_length 24$"),
        ],
    )  # fmt: skip
    def test_too_long(self, row, length, truncate, message):
        with pytest.raises(InputError, match=f"^{message}"):
            encode(row, row.answer, QuestionAnswer(), ascii_tokenizer(), length, truncate)


@pytest.mark.parametrize("prompt_format", [QuestionAnswer(), ChatTemplate()])
def test_a_tokenizer_without_eos_is_refused(prompt_format):
    with pytest.raises(InputError, match="has no EOS token"):
        encode(ROW, "Me.", prompt_format, ascii_tokenizer(eos=None), LONG)


# --- chat templates ---------------------------------------------------------------------------------------

# As Llama 3.1 writes it: BOS in the template, a system turn always, contents trimmed.
LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\nToday Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content']|trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n\\n' }}{%- endif %}"""
LLAMA3_SPECIALS = ("<|begin|>", "<|start|>", "<|end|>", "<|eot_id|>", "<|end_of_text|>")
BEGIN, START, END, EOT, END_OF_TEXT = range(128, 133)

# As Qwen 2.5 writes it: no BOS, contents as they are, a line break after each turn.
QWEN = """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
QWEN_SPECIALS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
IM_START, IM_END = 128, 129


def llama3(eos="<|eot_id|>"):
    return ascii_tokenizer(
        start=("<|begin|>",),
        specials=LLAMA3_SPECIALS,
        eos=eos,
        bos_token="<|begin|>",
        pad_token="<|eot_id|>",
        chat_template=LLAMA3,
    )


def qwen(template=QWEN, **options):
    return ascii_tokenizer(
        start=(),
        specials=QWEN_SPECIALS,
        eos="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=template,
        **options,
    )


def llama3_prompt(system, *turns, date=b"10 Apr 2025"):
    ids = [BEGIN, START, *b"system", END, *b"\n\nToday Date: ", *date, *b"\n\n", *system, EOT]
    for role, content in turns:
        ids += [START, *role, END, *b"\n\n", *content, EOT]
    return (*ids, START, *b"assistant", END, *b"\n\n")


class TestLlama3Template:
    """Pad is EOS is the end of a turn, and it stands in the prompt too."""

    def test_every_id(self):
        # fmt: off
        expected = (
            128,
            129, 115, 121, 115, 116, 101, 109, 130, 10, 10,  # system header
            84, 111, 100, 97, 121, 32, 68, 97, 116, 101, 58, 32,  # "Today Date: "
            49, 48, 32, 65, 112, 114, 32, 50, 48, 50, 53, 10, 10, 131,  # "10 Apr 2025"
            129, 117, 115, 101, 114, 130, 10, 10, 87, 104, 111, 63, 131,  # user: "Who?"
            129, 97, 115, 115, 105, 115, 116, 97, 110, 116, 130, 10, 10,  # assistant header
            77, 101, 46, 131,  # "Me." and the end of the turn, once
        )
        # fmt: on
        assert encode(ROW, "Me.", ChatTemplate(), llama3(), LONG) == Encoded(expected, 63, 1)

    @pytest.mark.parametrize(
        ("template", "messages", "answer", "eos", "prompt"),
        [
            (ChatTemplate("Be kind.", date_string="1 Jan 2030"), ROW.messages, "Me.", "<|eot_id|>",
             llama3_prompt(b"Be kind.", (b"user", b"Who?"), date=b"1 Jan 2030")),
            (ChatTemplate("Be kind."), (("system", "Be brief."), ("user", "Who?")), "Me.", "<|eot_id|>",
             llama3_prompt(b"Be brief.", (b"user", b"Who?"))),
            (ChatTemplate(), (("user", "Hi"), ("assistant", "Me."), ("user", "Who?")), "Me.", "<|eot_id|>",
             llama3_prompt(b"", (b"user", b"Hi"), (b"assistant", b"Me."), (b"user", b"Who?"))),
            (ChatTemplate(), ROW.messages, " Me. \n", "<|eot_id|>", llama3_prompt(b"", (b"user", b"Who?"))),
            (ChatTemplate(), ROW.messages, "Me.", "<|end_of_text|>", llama3_prompt(b"", (b"user", b"Who?"))),
        ],
        ids=[
            "system message and date", "the row's own system message is kept", "earlier answers are prompt",
            "spaces that the template strips are not trained", "an end of turn that is not EOS",
        ],
    )  # fmt: skip
    def test_conversations(self, template, messages, answer, eos, prompt):
        encoded = encode(Row(messages, answer), answer, template, llama3(eos), LONG)
        assert encoded == Encoded((*prompt, *answer.strip().encode(), EOT), len(prompt), 1)

    def test_an_answer_that_is_not_the_rows(self):
        prompt = llama3_prompt(b"", (b"user", b"Who?"))
        encoded = encode(ROW, "You.", ChatTemplate(), llama3(), LONG)
        assert encoded == Encoded((*prompt, *b"You.", EOT), len(prompt), 1)

    def test_plain_text_gets_bos_and_eos_and_no_turn(self):
        encoded = encode(TEXT, "Once.", ChatTemplate("Be kind."), llama3(), LONG)
        assert encoded == Encoded((BEGIN, *b"Once.", EOT), 1, 1)


class TestQwenTemplate:
    PROMPT = (IM_START, *b"user\nWho?", IM_END, 10, IM_START, *b"assistant\n")

    @pytest.mark.parametrize(
        ("template", "answer", "before"),
        [(ChatTemplate(), "Me.", ()), (ChatTemplate(), " Me. ", ()),
         (ChatTemplate("Be kind."), "Me.", (IM_START, *b"system\nBe kind.", IM_END, 10))],
        ids=["the line break after the turn is left out", "spaces around the answer are written once", "system message"],
    )  # fmt: skip
    def test_conversations(self, template, answer, before):
        encoded = encode(Row(ROW.messages, answer), answer, template, qwen(), LONG)
        prompt = (*before, *self.PROMPT)
        assert encoded == Encoded((*prompt, *answer.encode(), IM_END), len(prompt), 1)
        assert len(self.PROMPT) == 23

    def test_text_between_generation_prompt_and_answer_is_prompt(self):
        # As Qwen 3 writes an empty thought before the last answer.
        thought = "{{- '<think>\\n\\n</think>\\n\\n' if message['role'] == 'assistant' }}"
        template = """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}THOUGHT{{- message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}""".replace("THOUGHT", thought)
        encoded = encode(ROW, "Me.", ChatTemplate(), qwen(template), LONG)
        prompt = (*self.PROMPT, *b"<think>\n\n</think>\n\n")
        assert encoded == Encoded((*prompt, *b"Me.", IM_END), len(prompt), 1)

    def test_eos_closes_where_the_template_writes_no_end(self):
        template = (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}"
        )
        encoded = encode(ROW, "Me.", ChatTemplate(), qwen(template), LONG)
        assert encoded == Encoded((*b"user: Who?\nassistant: Me.", IM_END), 22, 1)


@pytest.mark.parametrize("tokenizer", [llama3(), qwen()], ids=["llama3", "qwen"])
def test_what_is_trained_is_what_the_template_writes(tokenizer):
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    theirs = tokenizer.apply_chat_template(turns, date_string="10 Apr 2025", return_dict=False)
    ours = encode(ROW, "Me.", ChatTemplate(), tokenizer, LONG)
    assert list(ours.ids) == theirs[: len(ours.ids)]
    assert theirs[len(ours.ids) :] in ([], [10])
    prompt = tokenizer.apply_chat_template(
        turns[:1], date_string="10 Apr 2025", add_generation_prompt=True, return_dict=False
    )
    assert list(ours.ids[: ours.answer_start]) == prompt


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (ascii_tokenizer(), "no chat template: use the prompt format QuestionAnswer"),
        (qwen("{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"),
         "does not write the answer as it is to the row that begins 'Who"),
        (qwen("{{ raise_exception('System role not supported') }}"),  # as Gemma's template does
         r"refuses the row that begins 'Who\?', turn 1 of 3 \(system, 'Be kind\.'\): System role not supported$"),
    ],
    ids=["no template", "the answer is left out", "an exception of the template"],
)  # fmt: skip
def test_unusable_templates(tokenizer, message):
    with pytest.raises(InputError, match=message):
        encode(ROW, "Me.", ChatTemplate("Be kind."), tokenizer, LONG)
