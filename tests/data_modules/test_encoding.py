"""Prompts and answers as token ids, written out: small tokenizers in which every id is known beforehand."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dipo_pl.batch import Encoded
from dipo_pl.data_modules.encoding import encode
from dipo_pl.errors import InputError
from dipo_pl.prompts import ChatTemplate, Continuation, FewShot, Llama2Chat, QuestionAnswer
from dipo_pl.rows import Row

BOS, EOS = 128, 129
ROW = Row((("user", "Who?"),), "Me.")
LONG = 512


def ascii_tokenizer(start=("<s>",), end=(), specials=("<s>", "</s>"), eos="</s>", **options):
    """One token a character, its id the character's ASCII code; special tokens from 128 on, in their order."""
    numbers = {token: 128 + index for index, token in enumerate(specials)}
    vocabulary = {chr(code): code for code in range(128)} | numbers
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*start, "$A", *end], special_tokens=[(token, numbers[token]) for token in {*start, *end}]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, additional_special_tokens=list(specials), **options
    )


def byte_tokenizer(*merges):
    """Byte-level BPE with these merges and no special token but EOS, which has the first id after the bytes."""
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary["</s>"] = len(vocabulary)
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


class TestFewShot:
    BEFORE = b"Question: A?\nAnswer: a\n\nQuestion: B?\nAnswer: b\n\n"

    def test_answered_questions_stand_before_the_rows_own(self):
        prompt = self.BEFORE + b"Question: Who?\nAnswer: "
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

    def test_an_answer_too_long_is_cut_behind_the_prompt(self):
        tokenizer = ascii_tokenizer()
        whole = encode(ROW, "Me.", FewShot([]), tokenizer, LONG)
        encoded = encode(ROW, "Me.", FewShot([]), tokenizer, len(whole.ids) - 2, truncate=True)
        assert encoded == Encoded(whole.ids[:-2], whole.answer_start, 0, True)


def test_a_continuation_begins_with_a_space():
    encoded = encode(ROW, "goes on.", Continuation(), ascii_tokenizer(), LONG)
    assert encoded == Encoded((BOS, *b"Who? goes on.", EOS), 6, 1)


class TestQuestionAnswer:
    def test_every_id(self):
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

    def test_other_words_around_the_question(self):
        prompt_format = QuestionAnswer(question_start="Q ", answer_start=" A ")
        encoded = encode(ROW, "Me.", prompt_format, ascii_tokenizer(), LONG)
        assert encoded == Encoded((BOS, *b"Q Who? A Me.", EOS), 10, 1)

    def test_another_answer_than_the_rows_own(self):
        encoded = encode(ROW, "You.", QuestionAnswer(), ascii_tokenizer(), LONG)
        assert encoded == Encoded((BOS, *b"Question: Who?\nAnswer: You.", EOS), 24, 1)

    def test_without_bos_the_answer_starts_one_earlier(self):
        encoded = encode(ROW, "Me.", QuestionAnswer(), ascii_tokenizer(start=()), LONG)
        assert encoded == Encoded((*b"Question: Who?\nAnswer: Me.", EOS), 23, 1)

    def test_eos_of_the_tokenizers_own_is_not_doubled(self):
        encoded = encode(ROW, "Me.", QuestionAnswer(), ascii_tokenizer(end=("</s>",)), LONG)
        assert encoded == Encoded((BOS, *b"Question: Who?\nAnswer: Me.", EOS), 24, 1)

    def test_several_special_tokens_before_the_text(self):
        encoded = encode(ROW, "Me.", QuestionAnswer(), ascii_tokenizer(start=("<s>", "<s>")), LONG)
        assert encoded == Encoded((BOS, BOS, *b"Question: Who?\nAnswer: Me.", EOS), 25, 1)

    def test_refuses_a_conversation(self):
        row = Row((("user", "Hi"), ("assistant", "Hello"), ("user", "Who?")), "Me.")
        with pytest.raises(
            InputError, match=r"QuestionAnswer holds one question.* 3 messages .*ChatTemplate$"
        ):
            encode(row, "Me.", QuestionAnswer(), ascii_tokenizer(), LONG)


def test_llama2_chat_has_no_space_before_the_answer():
    encoded = encode(ROW, "Me.", Llama2Chat(), ascii_tokenizer(), LONG)
    assert encoded == Encoded((BOS, *b"[INST] Who? [/INST]Me.", EOS), 20, 1)


class TestPlainText:
    TEXT = Row((), "Once.")

    @pytest.mark.parametrize("prompt_format", [QuestionAnswer(), Llama2Chat()])
    def test_all_of_it_is_predicted_from_bos(self, prompt_format):
        encoded = encode(self.TEXT, "Once.", prompt_format, ascii_tokenizer(), LONG)
        assert encoded == Encoded((BOS, *b"Once.", EOS), 1, 1)

    def test_without_bos_the_first_token_cannot_be_predicted(self):
        encoded = encode(self.TEXT, "Once.", QuestionAnswer(), ascii_tokenizer(start=()), LONG)
        assert encoded == Encoded((*b"Once.", EOS), 1, 1)

    def test_one_token_without_bos_leaves_its_end(self):
        assert encode(Row((), "O"), "O", QuestionAnswer(), ascii_tokenizer(start=()), LONG) == Encoded(
            (79, EOS), 1
        )


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

    @pytest.mark.parametrize("truncate", [False, True])
    def test_the_limit_itself_is_allowed(self, truncate):
        encoded = encode(ROW, "Me.", QuestionAnswer(), ascii_tokenizer(), 28, truncate)
        assert encoded == Encoded((BOS, *b"Question: Who?\nAnswer: Me.", EOS), 24, 1, cut=False)

    def test_more_is_refused_with_the_numbers(self):
        message = (
            r"^28 tokens, more than data.max_length 27, in the row that begins 'Who\?'.*too_long to truncate$"
        )
        with pytest.raises(InputError, match=message):
            encode(ROW, "Me.", QuestionAnswer(), ascii_tokenizer(), 27)

    def test_a_long_plain_text_is_named_by_its_beginning(self):
        with pytest.raises(InputError, match=r"^102 tokens.* row that begins 'a{60}': "):
            encode(Row((), "a" * 100), "a" * 100, QuestionAnswer(), ascii_tokenizer(), 100)

    def test_truncation_cuts_the_end_and_says_so(self):
        encoded = encode(ROW, "Me.", QuestionAnswer(), ascii_tokenizer(), 25, truncate=True)
        assert encoded == Encoded((BOS, *b"Question: Who?\nAnswer: M"), 24, cut=True)

    def test_no_answer_token_left(self):
        message = (
            r"^no answer token is left in the row that begins 'Who\?': its answer is 'Me.', its prompt "
            "24 tokens, data.max_length 24$"
        )
        with pytest.raises(InputError, match=message):
            encode(ROW, "Me.", QuestionAnswer(), ascii_tokenizer(), 24, truncate=True)


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

    def test_system_message_and_date(self):
        prompt = llama3_prompt(b"Be kind.", (b"user", b"Who?"), date=b"1 Jan 2030")
        encoded = encode(ROW, "Me.", ChatTemplate("Be kind.", date_string="1 Jan 2030"), llama3(), LONG)
        assert encoded == Encoded((*prompt, *b"Me.", EOT), len(prompt), 1)

    def test_a_system_message_of_the_rows_own_stays_alone(self):
        prompt = llama3_prompt(b"Be brief.", (b"user", b"Who?"))
        row = Row((("system", "Be brief."), ("user", "Who?")), "Me.")
        encoded = encode(row, "Me.", ChatTemplate("Be kind."), llama3(), LONG)
        assert encoded == Encoded((*prompt, *b"Me.", EOT), len(prompt), 1)

    def test_earlier_answers_of_a_conversation_are_prompt(self):
        prompt = llama3_prompt(b"", (b"user", b"Hi"), (b"assistant", b"Me."), (b"user", b"Who?"))
        row = Row((("user", "Hi"), ("assistant", "Me."), ("user", "Who?")), "Me.")
        encoded = encode(row, "Me.", ChatTemplate(), llama3(), LONG)
        assert encoded == Encoded((*prompt, *b"Me.", EOT), len(prompt), 1)

    def test_another_answer_than_the_rows_own(self):
        prompt = llama3_prompt(b"", (b"user", b"Who?"))
        encoded = encode(ROW, "You.", ChatTemplate(), llama3(), LONG)
        assert encoded == Encoded((*prompt, *b"You.", EOT), len(prompt), 1)

    def test_space_around_the_answer_that_the_template_strips(self):
        prompt = llama3_prompt(b"", (b"user", b"Who?"))
        encoded = encode(Row(ROW.messages, " Me. "), " Me. ", ChatTemplate(), llama3(), LONG)
        assert encoded == Encoded((*prompt, *b" Me. ", EOT), len(prompt), 1)

    def test_an_end_of_turn_other_than_eos_closes_the_answer_alone(self):
        prompt = llama3_prompt(b"", (b"user", b"Who?"))
        encoded = encode(ROW, "Me.", ChatTemplate(), llama3(eos="<|end_of_text|>"), LONG)
        assert encoded == Encoded((*prompt, *b"Me.", EOT), len(prompt), 1)

    def test_plain_text_gets_bos_and_eos_and_no_turn(self):
        encoded = encode(Row((), "Once."), "Once.", ChatTemplate("Be kind."), llama3(), LONG)
        assert encoded == Encoded((BEGIN, *b"Once.", EOT), 1, 1)


class TestQwenTemplate:
    PROMPT = (IM_START, *b"user\nWho?", IM_END, 10, IM_START, *b"assistant\n")

    def test_the_line_break_after_the_turn_is_left_out(self):
        encoded = encode(ROW, "Me.", ChatTemplate(), qwen(), LONG)
        assert encoded == Encoded((*self.PROMPT, *b"Me.", IM_END), len(self.PROMPT), 1)
        assert len(self.PROMPT) == 23

    def test_system_message(self):
        encoded = encode(ROW, "Me.", ChatTemplate("Be kind."), qwen(), LONG)
        prompt = (IM_START, *b"system\nBe kind.", IM_END, 10, *self.PROMPT)
        assert encoded == Encoded((*prompt, *b"Me.", IM_END), len(prompt), 1)

    def test_space_around_the_answer_is_written_once(self):
        row = Row(ROW.messages, " Me. ")
        encoded = encode(row, " Me. ", ChatTemplate(), qwen(), LONG)
        assert encoded == Encoded((*self.PROMPT, *b" Me. ", IM_END), len(self.PROMPT), 1)

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


class TestTemplateRefusals:
    def test_no_template(self):
        with pytest.raises(InputError, match=r"no chat template: use the prompt format QuestionAnswer"):
            encode(ROW, "Me.", ChatTemplate(), ascii_tokenizer(), LONG)

    @pytest.mark.parametrize(
        "template",
        [
            "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}",
            "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
        ],
        ids=["the answer is left out", "the generation prompt is not what stands before an answer"],
    )
    def test_a_template_that_cannot_be_split(self, template):
        with pytest.raises(InputError, match="does not write the answer after its generation prompt"):
            encode(ROW, "Me.", ChatTemplate(), qwen(template), LONG)

    def test_a_conversation_that_the_template_refuses(self):
        template = "{{ raise_exception('System role not supported') }}"  # as Gemma says
        message = (
            r"refuses the row that begins 'Who\?' with the roles system, user: System role not supported$"
        )
        with pytest.raises(InputError, match=message):
            encode(ROW, "Me.", ChatTemplate("Be kind."), qwen(template), LONG)
