"""The tokenizer that is trained on given texts: writes any text, the same way every time."""

import time

import pytest

from dipo_pl.errors import InputError
from dipo_pl.models.tokenizer import train_tokenizer

TEXTS = ["the theatre there", "the thin thread", "Where? There!", "zwölf Boxkämpfer"]
STRANGE = [
    "the theatre", "Quick jumping zebras vex", " leading and  double  spaces ", "\n\ttabs\r\nand\nlines\n",
    "don't, he'd, we're", "a . b ? c ! d , e n't f 's g 're", "naïve façade Straße ĳ", "漢字 かな 한글 हिन्दी العربية",
    "🙂👩‍👩‍👧 é (combining)", "\x00\x01\x7f\ufffd\u2028", "0123456789" * 5, "[INST] <|eot_id|> <s",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 280)


@pytest.mark.parametrize("text", STRANGE)
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id is None


def test_bos_stands_before_every_sequence(tokenizer):
    for text in ("", "the", "</s>"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer("").input_ids == [0]
    assert tokenizer("the", add_special_tokens=False).input_ids == tokenizer("the").input_ids[1:]


def test_special_tokens(tokenizer):
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert tokenizer.is_fast
    # Said to whoever loads it: transformers 4 would otherwise take spaces out of what is decoded.
    assert tokenizer.clean_up_tokenization_spaces is False


def test_a_text_without_merges_is_its_bytes():
    tokenizer = train_tokenizer(TEXTS, 259)
    assert len(tokenizer) == 259
    letters = [chr(number) for number in range(ord("!"), ord("~") + 1)]
    assert tokenizer("the!").input_ids == [0, *(3 + letters.index(letter) for letter in "the!")]
    assert len(tokenizer("ö🙂").input_ids) == 1 + 2 + 4


def test_what_is_frequent_is_one_token(tokenizer):
    assert len(tokenizer) == 280
    assert len(tokenizer("the").input_ids) == 2
    assert len(tokenizer("there").input_ids) < 1 + len("there")


def test_texts_too_short_for_the_vocabulary_give_a_smaller_one():
    assert len(train_tokenizer(["aa"], 5000)) == 260
    assert len(train_tokenizer([], 5000)) == 259


def test_the_same_texts_give_the_same_tokenizer(tokenizer):
    again = train_tokenizer(iter(TEXTS), 280)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_offsets_are_those_of_the_characters(tokenizer):
    coded = tokenizer("the ö", return_offsets_mapping=True)
    assert coded.offset_mapping[0] == (0, 0)
    assert coded.offset_mapping[-1][1] == 5
    assert [end for _, end in coded.offset_mapping] == sorted(end for _, end in coded.offset_mapping)


@pytest.mark.parametrize("vocab_size", [258, 0, -1])
def test_a_vocabulary_too_small_for_the_bytes(vocab_size):
    message = rf"^model\.policy\.vocab_size must be at least 259, .* \(got {vocab_size}\)$"
    with pytest.raises(InputError, match=message):
        train_tokenizer(TEXTS, vocab_size)


@pytest.mark.parametrize("word", ["ab" * 100_000, " " * 200_000, "1" * 200_000])
def test_a_word_without_end_takes_no_time_without_end(word):
    started = time.process_time()
    tokenizer = train_tokenizer([f"short {word} words"], 300)
    assert time.process_time() - started < 10
    assert tokenizer.decode(tokenizer(f"a{word}b", add_special_tokens=False)["input_ids"]) == f"a{word}b"
